"""Parquet files and the Arrow files of a saved Hugging Face dataset, read a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from unmemorize.core.errors import UserError
from unmemorize.data.items import MAX_FILE, Item, caption_column, inside, read_limited, safe_id, usable

BATCH = 1024
PICTURES = ("image", "picture", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes")
IDS = ("id", "key", "image_id", "file_name", "__key__", "uid")
BROKEN = (OSError, ValueError, pa.ArrowException)


@dataclass(frozen=True)
class TablePiece:
    """One file of a table, or one row group of a Parquet file."""

    path: Path
    root: Path
    column: str = ""
    group: int | None = None

    def items(self) -> Iterator[Item]:
        """Read it; a file that breaks off is reported once, after the rows before the break."""
        name = safe_id(self.path.relative_to(self.root))
        first = name if self.group is None else f"{name}:{self.group}"
        number = 0
        try:
            for batch in self._batches():
                caption, picture, key = _columns(batch.schema, self.column)
                if caption is None:
                    yield Item(first, problem="no caption column")
                    return
                kept = batch.select([n for n in (caption, picture, key) if n is not None])
                for i in range(len(kept)):
                    yield _item(f"{first}:{number}", kept, i, (caption, picture, key), self.root)
                    number += 1
        except BROKEN:
            yield Item(f"{first}:{number}", problem="file cannot be read")

    def _batches(self) -> Iterator[pa.RecordBatch]:
        if self.path.suffix == ".parquet":
            with pq.ParquetFile(self.path) as file:
                groups = None if self.group is None else [self.group]
                names = [n for n in _columns(file.schema_arrow, self.column) if n is not None]
                yield from file.iter_batches(BATCH, row_groups=groups, columns=names, use_threads=False)
        else:
            with pa.memory_map(str(self.path)) as source, _open_arrow(source) as reader:
                for batch in reader:
                    yield from (batch.slice(i, BATCH) for i in range(0, len(batch), BATCH))


def table_pieces(files: list[Path], root: Path, column: str) -> list[TablePiece]:
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
            pieces += [TablePiece(path, root, column, g) for g in groups]
    if lacking is not None and not found:
        what = f"column {column!r}" if column else "caption column"
        raise UserError(f"{root}: no {what}: it has {', '.join(lacking[:20])}; name one with --column")
    return pieces


def _schema(path: Path) -> tuple[pa.Schema, list[int | None]]:
    if path.suffix == ".parquet":
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


def _columns(schema: pa.Schema, column: str) -> tuple[str | None, str | None, str | None]:
    """Names of the caption, picture and id columns."""
    lower = {n.strip().lower(): n for n in reversed(schema.names)}
    picture = next((lower[n] for n in PICTURES if n in lower and _holds_pictures(schema.field(lower[n]).type)), None)
    key = next((lower[n] for n in IDS if n in lower and _names_rows(schema.field(lower[n]).type)), None)
    return caption_column(schema.names, column), picture, key


def _holds_pictures(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _names_rows(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _item(place: str, batch: pa.RecordBatch, row: int, names: tuple[str, str | None, str | None], root: Path) -> Item:
    caption_name, picture, key = names
    id = safe_id(batch[key][row]) if key and batch[key][row].is_valid else place
    try:
        caption = batch[caption_name][row].as_py()
    except UnicodeDecodeError:
        return Item(id, problem="caption is not UTF-8")
    if picture is None:
        return usable(id, caption, None)
    value = batch[picture][row]
    if not value.is_valid:
        return Item(id, problem="no picture")
    stored = value["bytes"] if pa.types.is_struct(value.type) else value
    if stored.is_valid:
        if stored.as_buffer().size > MAX_FILE:
            return Item(id, problem="file too large")
        return usable(id, caption, stored.as_py)
    if value.type.get_field_index("path") < 0 or not value["path"].is_valid:
        return Item(id, problem="no picture")
    path = inside(root, value["path"].as_py())
    if path is None:
        return Item(id, problem="path leaves the folder")
    return usable(id, caption, partial(read_limited, path)) if path.is_file() else Item(id, problem="no such picture")
