"""Parquet files and the Arrow files of a saved Hugging Face dataset, read a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from unmemorize.core.plain import from_json
from unmemorize.core.storage import is_remote, opened
from unmemorize.data.cells import Columns, Pictures, as_bytes, ids
from unmemorize.data.items import TWICE, Item, caption_column, is_twice, no_caption_column, safe_id, with_caption

BATCH = 1024
UNREADABLE = "file cannot be read"
BROKEN = (OSError, ValueError, OverflowError, MemoryError, pa.ArrowException)
# A page is unpacked whole: what becomes larger, and so much larger than it is in the file, was made to fill the memory.
MAX_UNPACKED, MOST_UNPACKED = 1 << 28, 100  # bytes of a column in a row group, and times their number in the file


@dataclass(frozen=True)
class TablePiece:
    """One file of a table, or one row group of a Parquet file; its pictures are left out where captions suffice."""

    path: Path
    root: Path
    column: str = ""
    group: int | None = None
    pictures: bool = True

    def items(self) -> Iterator[Item]:
        """Read it; a file that breaks off is reported once, after the rows before the break."""
        name = safe_id(self.path.relative_to(self.root))
        first = name if self.group is None else f"{name}:{self.group}"
        return read_batches(self._batches(), first, self.root, self._columns)

    def _columns(self, schema: pa.Schema) -> Columns:
        return Columns.of(schema, self.column, self.pictures)

    def _batches(self) -> Iterator[pa.RecordBatch]:
        if self.path.suffix.lower() == ".parquet":
            with opened(self.path) as source, pq.ParquetFile(source) as file:
                groups = list(range(file.num_row_groups)) if self.group is None else [self.group]
                names = self._columns(file.schema_arrow).names
                for group in groups:
                    _check_unpacked(file.metadata.row_group(group))
                yield from file.iter_batches(BATCH, row_groups=groups, columns=names, use_threads=False)
        else:
            with _mapped(self.path) as source, _open_arrow(source) as reader:
                for batch in reader:
                    yield from (batch.slice(i, BATCH) for i in range(0, len(batch), BATCH))


def read_batches(
    batches: Iterable[pa.RecordBatch], first: str, root: Path, columns_of: Callable[[pa.Schema], Columns]
) -> Iterator[Item]:
    """The rows of a table's batches; where reading them breaks off, that is an item after those before the break.

    Args:
        batches: Some rows at a time.
        first: What the table is called: a row without an id is named by it and its number.
        root: The folder below which files lie that the table names.
        columns_of: The columns that are read, by the schema of a batch.
    """
    number = 0
    try:
        for batch in batches:
            columns = columns_of(batch.schema)
            if columns.caption is None or is_twice(batch.schema.names, columns.names):
                yield Item(first, problem=TWICE if columns.caption else "no caption column")
                return
            for item in _rows(batch, columns, root):
                yield item if item.id else replace(item, id=f"{first}:{number}")
                number += 1
    except BROKEN:
        yield Item(f"{first}:{number}", problem=UNREADABLE)


def table_pieces(files: list[Path], root: Path, column: str, pictures: bool = True) -> list[TablePiece]:
    """Every row group of every Parquet file, every Arrow file.

    Raises:
        UserError: No file has a caption column.
    """
    pieces: list[TablePiece] = []
    lacking: list[str] | None = None
    found = False
    for path in files:
        try:
            schema, groups = _schema(path)
        except BROKEN:
            pieces.append(TablePiece(path, root, column))
            continue
        if caption_column(schema.names, column) is None:
            lacking = lacking or schema.names
            pieces.append(TablePiece(path, root, column))
        else:
            found = True
            pieces += [TablePiece(path, root, column, group, pictures) for group in groups]
    if lacking is not None and not found:
        raise no_caption_column(files[0] if len(files) == 1 else root, lacking, column)
    return pieces


def holds_pictures(path: Path) -> bool:
    """Whether a table has a column of pictures; true of one that cannot be read, so that it is named as that."""
    try:
        schema, _ = _schema(path)
    except BROKEN:
        return True
    return Columns.of(schema, "").picture is not None


def dataset_files(files: list[Path]) -> list[Path]:
    """The Arrow files that hold a dataset's rows, without those that `map` and `shuffle` cached beside them.

    In a folder of `save_to_disk` they are those that its `state.json` names.
    """
    named = {folder: _named_files(folder) for folder in {path.parent for path in files}}
    rows = []
    for path in files:
        names = named[path.parent]
        if path.name in names if names else not path.name.startswith(("cache-", "tmp")):
            rows.append(path)
    return rows


def _named_files(folder: Path) -> set[str]:
    try:
        with opened(folder / "state.json") as file:
            state = from_json(file.read())
        return {Path(entry["filename"]).name for entry in state["_data_files"]}
    except (OSError, ValueError, LookupError, TypeError):
        return set()


def _schema(path: Path) -> tuple[pa.Schema, list[int | None]]:
    if path.suffix.lower() == ".parquet":
        with opened(path) as source, pq.ParquetFile(source) as file:
            return file.schema_arrow, list(range(file.num_row_groups))
    with _mapped(path) as source, _open_arrow(source) as reader:
        return reader.schema, [None]


def _mapped(path: Path) -> Any:
    return opened(path) if is_remote(path) else pa.memory_map(str(path))


def _open_arrow(source: pa.NativeFile) -> Any:
    try:
        return pa.ipc.open_stream(source)  # as `datasets` writes them
    except pa.ArrowInvalid:
        source.seek(0)
        file = pa.ipc.open_file(source)
        return pa.RecordBatchReader.from_batches(
            file.schema, (file.get_batch(i) for i in range(file.num_record_batches))
        )


def _check_unpacked(group: pq.RowGroupMetaData) -> None:
    """Refuse a row group of which a column would unpack to far more than the file has.

    Raises:
        ValueError: It would.
    """
    for number in range(group.num_columns):
        chunk = group.column(number)
        if chunk.total_uncompressed_size > max(MAX_UNPACKED, MOST_UNPACKED * chunk.total_compressed_size):
            raise ValueError(f"{chunk.path_in_schema} unpacks to {chunk.total_uncompressed_size} bytes")


def _rows(batch: pa.RecordBatch, columns: Columns, root: Path) -> Iterator[Item]:
    """The rows of a batch; their ids are empty where the table has none."""
    batch.validate()
    captions = as_bytes(batch[columns.caption])
    keys = [""] * len(batch) if columns.key is None else ids(batch[columns.key])
    pictures = None if columns.picture is None else Pictures.of(batch[columns.picture], root)
    for row, key in enumerate(keys):
        item = Item(key) if pictures is None else pictures.beside(Item(key), row)
        if item.problem:
            yield item
        elif captions is None:
            yield replace(item, problem="caption is not text")
        else:
            yield with_caption(item, captions[row].as_py())
