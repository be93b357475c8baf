"""Parquet files and the Arrow files of a saved Hugging Face dataset, read a batch at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from unmemorize.data.items import (
    MAX_FILE,
    Item,
    caption_column,
    find_name,
    inside,
    no_caption_column,
    read_limited,
    safe_id,
    why_not_opened,
    with_caption,
)

BATCH = 1024
PICTURES = ("image", "picture", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes")
IDS = ("id", "key", "image_id", "file_name", "__key__", "uid")
UNREADABLE = "file cannot be read"
BROKEN = (OSError, ValueError, pa.ArrowException)


@dataclass(frozen=True)
class Columns:
    """Names of the columns that are read; None for those that a table lacks."""

    caption: str | None
    picture: str | None
    key: str | None

    @property
    def names(self) -> list[str]:
        """Those there are."""
        return [name for name in (self.caption, self.picture, self.key) if name is not None]


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
        number = 0
        try:
            for batch in self._batches():
                columns = self._columns(batch.schema)
                if columns.caption is None:
                    yield Item(first, problem="no caption column")
                    return
                kept = batch.select(columns.names)
                for i in range(len(kept)):
                    yield _item(f"{first}:{number}", kept, i, columns, self.root)
                    number += 1
        except BROKEN:
            yield Item(f"{first}:{number}", problem=UNREADABLE)

    def _columns(self, schema: pa.Schema) -> Columns:
        found = columns_of(schema, self.column)
        return found if self.pictures else Columns(found.caption, None, None)

    def _batches(self) -> Iterator[pa.RecordBatch]:
        if self.path.suffix.lower() == ".parquet":
            with pq.ParquetFile(self.path) as file:
                groups = None if self.group is None else [self.group]
                names = self._columns(file.schema_arrow).names
                yield from file.iter_batches(BATCH, row_groups=groups, columns=names, use_threads=False)
        else:
            with pa.memory_map(str(self.path)) as source, _open_arrow(source) as reader:
                for batch in reader:
                    yield from (batch.slice(i, BATCH) for i in range(0, len(batch), BATCH))


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
    return columns_of(schema, "").picture is not None


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
        state = json.loads((folder / "state.json").read_bytes())
        return {Path(entry["filename"]).name for entry in state["_data_files"]}
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        return set()


def _schema(path: Path) -> tuple[pa.Schema, list[int | None]]:
    if path.suffix.lower() == ".parquet":
        with pq.ParquetFile(path) as file:
            return file.schema_arrow, list(range(file.num_row_groups))
    with pa.memory_map(str(path)) as source, _open_arrow(source) as reader:
        return reader.schema, [None]


def _open_arrow(source: pa.NativeFile) -> Any:
    try:
        return pa.ipc.open_stream(source)  # as `datasets` writes them
    except pa.ArrowInvalid:
        source.seek(0)
        file = pa.ipc.open_file(source)
        return pa.RecordBatchReader.from_batches(
            file.schema, (file.get_batch(i) for i in range(file.num_record_batches))
        )


def columns_of(schema: pa.Schema, column: str) -> Columns:
    """The caption, picture and id columns of a table."""
    pictures = [name for name in schema.names if _holds_pictures(schema.field(name).type)]
    ids = [name for name in schema.names if _names_rows(schema.field(name).type)]
    return Columns(caption_column(schema.names, column), find_name(pictures, PICTURES), find_name(ids, IDS))


def _holds_pictures(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _names_rows(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _item(place: str, batch: pa.RecordBatch, row: int, columns: Columns, root: Path) -> Item:
    known = columns.key is not None and batch[columns.key][row].is_valid
    item = Item(safe_id(batch[columns.key][row]) if known else place)
    if columns.picture is not None:
        item = _with_picture(item, batch[columns.picture][row], root)
    if item.problem:
        return item
    try:
        return with_caption(item, batch[columns.caption][row].as_py())
    except UnicodeDecodeError:
        return with_caption(item, "\udcff")


def _with_picture(item: Item, value: pa.Scalar, root: Path) -> Item:
    """The item with the picture of a cell: bytes, or `{bytes, path}` as Hugging Face writes it."""
    if not value.is_valid:
        return Item(item.id, problem="no picture")
    stored = value["bytes"] if pa.types.is_struct(value.type) else value
    if stored.is_valid:
        too_large = stored.as_buffer().size > MAX_FILE
        return Item(item.id, problem="file too large") if too_large else Item(item.id, load=stored.as_py)
    if value.type.get_field_index("path") < 0 or not value["path"].is_valid:
        return Item(item.id, problem="no picture")
    path = inside(root, value["path"].as_py())
    if path is None or why_not_opened(path):
        return Item(item.id, problem=why_not_opened(path))
    return Item(item.id, load=partial(read_limited, path))
