"""What else the library `datasets` reads, as it streams it: nothing is downloaded first, and a data set has no code."""

from __future__ import annotations

import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from unmemorize.core.errors import MissingExtra, UserError
from unmemorize.core.storage import files_in, stamp_of
from unmemorize.data.cells import Columns
from unmemorize.data.items import Item, caption_column, no_caption_column
from unmemorize.data.tables import read_batches

PREFIX = "datasets:"
BATCH = 64  # rows that are held at once, with their pictures
DAMAGE = (ValueError, pa.ArrowException)  # what is wrong with a file, where all else is the network's or the disk's


def is_streamed(source: Path) -> bool:
    """Whether a source is named as one that `datasets` reads."""
    return str(source).startswith(PREFIX)


def path_of(source: str) -> str:
    """The folder or hub id of a source that `datasets` reads; any other source as it is."""
    return Named.of(Path(source)).path if is_streamed(Path(source)) else source


@dataclass(frozen=True)
class Named:
    """A data set as `datasets` knows it: a folder or a hub id, its configuration, one of its splits or all."""

    path: str
    name: str | None = None
    split: str | None = None

    @classmethod
    def of(cls, source: Path) -> Named:
        """What `datasets:PATH,name=CONFIGURATION,split=SPLIT` names, of which PATH alone is needed.

        Raises:
            UserError: It is none, or there is no such folder.
        """
        path, *settings = str(source).removeprefix(PREFIX).split(",")
        given = dict(setting.partition("=")[::2] for setting in settings)
        if not path or not all(given.values()) or not set(given) <= {"name", "split"}:
            raise UserError(f"{source}: write datasets:FOLDER or datasets:OWNER/NAME, and ,name= or ,split= after it")
        if not Path(path).is_dir() and (path.startswith((".", "/", "~")) or path.count("/") != 1):
            raise UserError(f"{source}: no such folder: name one, or a hub id (OWNER/NAME)")
        return cls(path, **given)

    @property
    def folder(self) -> Path | None:
        """Where it lies, if not on the hub."""
        return Path(self.path) if Path(self.path).is_dir() else None


@dataclass(frozen=True)
class StreamedPiece:
    """One shard of a split, as `datasets` cuts it: mostly a file."""

    source: Path
    split: str
    data: Any
    number: int
    column: str = ""
    pictures: bool = True

    def items(self) -> Iterator[Item]:
        """Read it; a file that breaks off is reported once, after the rows before the break."""
        return read_batches(self._batches(), f"{self.split}/{self.number:05d}", Path(), self._columns)

    def _columns(self, schema: pa.Schema) -> Columns:
        return Columns.of(schema, self.column, self.pictures)

    def _batches(self) -> Iterator[pa.RecordBatch]:
        shard = self.data.shard(self.data.num_shards, self.number)
        with _reading(self.source, DAMAGE):
            for rows in (shard.decode(False) if shard.features else shard).iter(BATCH):
                yield from self._table(rows).combine_chunks().to_batches()

    def _table(self, rows: dict[str, list[Any]]) -> pa.Table:
        """Some rows with pictures that they hold themselves: a path in them could lead anywhere on this machine."""
        from datasets import Features
        from datasets.table import embed_table_storage

        features = self.data.features
        if features is None:
            return pa.table(rows)
        columns = self._columns(features.arrow_schema)
        read = Features({name: features[name] for name in columns.names or features})
        table = pa.table({name: rows[name] for name in read}, schema=read.arrow_schema)
        if self.data.info.builder_name == "imagefolder":  # whose paths `datasets` keeps in the folder
            table = embed_table_storage(table)
        if columns.picture is None or not pa.types.is_struct(table.schema.field(columns.picture).type):
            return table
        place = table.column_names.index(columns.picture)
        return table.set_column(place, columns.picture, pc.struct_field(table[columns.picture], "bytes"))


def streamed_pieces(source: Path, column: str, pictures: bool = True) -> list[StreamedPiece]:
    """Every shard of every split.

    Raises:
        MissingExtra: `datasets` is not installed.
        UserError: It cannot read the source, or no split has a caption column.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingExtra(f"{source}: what `datasets` streams", "datasets") from error
    named = Named.of(source)
    revision = None if named.folder else _revision(source, named)
    with _reading(source), tempfile.TemporaryDirectory() as cache:  # of locks alone
        builder = datasets.load_dataset_builder(named.path, named.name, cache_dir=cache, revision=revision)
        streams = builder.as_streaming_dataset(named.split)
        splits = {named.split: streams} if named.split else streams
        known = [data.column_names for data in splits.values() if data.column_names]  # not those of a CSV
    if known and all(caption_column(names, column) is None for names in known):
        raise no_caption_column(source, known[0], column)
    found = []
    for split, data in splits.items():
        found += [StreamedPiece(source, str(split), data, n, column, pictures) for n in range(data.num_shards)]
    return found


def stamps_of(source: Path) -> list[tuple[object, ...]]:
    """What says that a source is the one that was read: sizes and times of a folder's files, or the hub's commit.

    Raises:
        UserError: The hub does not answer, or has no such data set.
    """
    named = Named.of(source)
    if named.folder is None:
        return [("commit", _revision(source, named))]
    return [(str(path.relative_to(named.folder)), *stamp_of(path)) for path in files_in(named.folder)]


def _revision(source: Path, named: Named) -> str:
    """The hub's commit, which is asked for once: the libraries go on asking a hub that cannot be reached."""
    from huggingface_hub import HfApi

    try:
        return str(HfApi().dataset_info(named.path).sha)
    except Exception as error:  # of the library beneath, which is not ours to name
        raise UserError(f"{source}: no such folder, and the hub: {_said(error)}: name another") from error


def _said(error: Exception) -> str:
    return textwrap.shorten(str(error) or type(error).__name__, 300, placeholder="…")


@contextmanager
def _reading(source: Path, passed: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Say in a line what `datasets` could not do, but for what is `passed` on."""
    ours: tuple[type[Exception], ...] = (UserError, *passed)
    try:
        yield
    except ours:
        raise
    except Exception as error:  # of whichever library was reading
        raise UserError(f"{source}: `datasets` cannot read it: {_said(error)}") from error
