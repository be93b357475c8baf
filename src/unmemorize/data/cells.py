"""Columns of Parquet and Arrow tables: which of them hold captions, pictures and ids, and their cells."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from unmemorize.data.items import (
    MAX_FILE,
    Item,
    caption_column,
    find_name,
    inside,
    read_limited,
    safe_id,
    why_not_opened,
)

PICTURES = ("image", "picture", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes")
IDS = ("id", "key", "image_id", "file_name", "__key__", "uid")
BYTES = (pa.binary(), pa.large_binary(), pa.binary_view())
VIEWS = (pa.string_view(), pa.binary_view())
TEXTS = (pa.string(), pa.large_string(), pa.string_view(), *BYTES)


@dataclass(frozen=True)
class Columns:
    """Names of the columns that are read; None for those that a table lacks."""

    caption: str | None
    picture: str | None
    key: str | None

    @classmethod
    def of(cls, schema: pa.Schema, column: str, pictures: bool = True) -> Columns:
        """The columns of a table, of which `column` is asked for as its captions; without pictures these alone."""
        caption = caption_column(schema.names, column)
        if not pictures:
            return cls(caption, None, None)
        kinds = list(zip(schema.names, schema.types, strict=True))
        files = [name for name, kind in kinds if _holds_pictures(kind)]
        keys = [name for name, kind in kinds if pa.types.is_integer(kind) or kind in TEXTS]
        return cls(caption, find_name(files, PICTURES), find_name(keys, IDS))

    @property
    def names(self) -> list[str]:
        """Those there are, each once."""
        return list(dict.fromkeys(name for name in (self.caption, self.picture, self.key) if name is not None))


@dataclass(frozen=True)
class Pictures:
    """A column of pictures: their bytes, or the paths of their files below `root`."""

    contents: pa.Array | None
    paths: pa.Array | None
    root: Path

    @classmethod
    def of(cls, column: pa.Array, root: Path) -> Pictures:
        """Those of a column of bytes, or of `{bytes, path}` as Hugging Face writes it."""
        kind = column.type
        if not pa.types.is_struct(kind):
            return cls(as_bytes(column), None, root)
        paths = as_bytes(pc.struct_field(column, "path")) if kind.get_field_index("path") >= 0 else None
        return cls(as_bytes(pc.struct_field(column, "bytes")), paths, root)

    def beside(self, item: Item, row: int) -> Item:
        """The item with the picture of a row, or with what is wrong with that."""
        if self.contents is not None and self.contents[row].is_valid:
            content = self.contents[row]
            if content.as_buffer().size > MAX_FILE:
                return replace(item, problem="file too large")
            return replace(item, load=content.as_py)
        if self.paths is None or not self.paths[row].is_valid:
            return replace(item, problem="no picture")
        path = inside(self.root, self.paths[row].as_py().decode(errors="surrogateescape"))
        if path is None or why_not_opened(path):
            return replace(item, problem=why_not_opened(path))
        return replace(item, load=partial(read_limited, path))


def ids(column: pa.Array) -> list[str]:
    """The ids in a column of whole numbers or of text; empty where there is none."""
    texts = as_bytes(column)
    if texts is None:
        return ["" if value is None else str(value) for value in column.to_pylist()]
    return ["" if value is None else safe_id(value.decode(errors="backslashreplace")) for value in texts.to_pylist()]


def as_bytes(column: pa.Array) -> pa.Array | None:
    """A column of text or bytes as bytes; None for a column of anything else.

    What calls itself text in a table may be no UTF-8, and where its parts lie is for the table to say: both are checked
    before a cell is read.
    """
    if pa.types.is_dictionary(column.type):
        column.validate(full=True)
        column = column.dictionary_decode()
    if column.type in VIEWS:
        column.validate(full=True)
    if column.type not in TEXTS:
        return None
    contents = column.cast(pa.large_binary())
    contents.validate(full=True)
    return contents


def _holds_pictures(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind):
        return kind in BYTES
    return kind.get_field_index("bytes") >= 0 and kind.field("bytes").type in (*BYTES, pa.null())
