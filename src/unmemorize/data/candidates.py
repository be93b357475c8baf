"""Which pictures are compared: pairs of perceptual hashes within seven bits; and how any pairs are found in shards."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from unmemorize.core.crew import Idle, never
from unmemorize.core.run import atomic, require_same_versions
from unmemorize.core.shards import Shards
from unmemorize.data.duplicates import RULE, are_near_duplicates
from unmemorize.data.hashes import Looks, brightness
from unmemorize.data.intake import ROWS, row_batches, rows_of
from unmemorize.data.near_cells import (
    SAMPLE,
    SEARCHED,
    Cells,
    Vectors,
    find_centres,
    near_in_cells,
    nearest_cells,
)
from unmemorize.data.near_hashes import SEVEN_BITS, THREE_BITS, Hashes, near_in_table

MANY = 1_000_000  # perceptual hashes; of more, not all within seven bits are looked for: n² / 1928 would be compared
RANGES = 16  # of cells: the pairs of each are a shard
BATCH = 8192  # vectors that are held at once: 13 MB of embeddings, and 34 of their products with the centres


@dataclass(frozen=True)
class Sharded(ABC):
    """A search for pairs of pictures among the rows of a run, in shards that processes share.

    Of few all pairs are found. Of more those that share a cell: a shard makes the cells, one a file of rows puts its
    pictures into them, and one a range of cells finds pairs.

    Attributes:
        run: The run directory.
        other: Another run, whose rows are searched with them.
    """

    run: Path
    other: Path | None = None

    prefix: ClassVar[str] = ""  # of its folders
    key: ClassVar[str]  # the column that pairs are pairs of
    column: ClassVar[str]  # that of the vectors
    searched: ClassVar[int] = SEARCHED  # nearest cells that a picture is in

    @property
    @abstractmethod
    def rule(self) -> str:
        """What makes two pictures one, as results are labelled with it."""

    @property
    @abstractmethod
    def how(self) -> str:
        """How pairs are found, in words."""

    @property
    @abstractmethod
    def is_exact(self) -> bool:
        """Whether all pairs are found."""

    @abstractmethod
    def finds(self, one: Looks, other: Looks) -> bool:
        """Whether two pictures would be found to be one, were they among the rows."""

    @cached_property
    def files(self) -> list[Path]:
        """The files of the rows."""
        return [*rows_of(self.run), *(rows_of(self.other) if self.other else [])]

    def share(self) -> None:
        """Do shards until all are done, by whichever process."""
        require_same_versions(self.run)
        for _ in self.take():
            pass

    def take(self, idle: Idle = never) -> Iterator[tuple[int, int]]:
        """Do shards, and yield how many are done, of how many, until all are; while `idle` says so, others do them."""
        stages = [(self._pairs, self._find_pairs)]
        if not self.is_exact:
            stages = [(self._centres, self._find_centres), (self._cells, self._find_cells), *stages]
        count, done = sum(shards.count for shards, _ in stages), 0
        for shards, find in stages:
            for _ in shards.take(_writing(shards, find), idle=idle):
                done += 1
                yield done, count

    @property
    def pairs(self) -> list[Path]:
        """The files of the pairs that were found."""
        return [self._pairs.path(number) for number in range(self._pairs.count)]

    @cached_property
    def centres(self) -> Vectors:
        """The centres of the cells (k, d), once they are made."""
        column = pq.read_table(self._centres.path(0))["centre"].combine_chunks()
        centres: Vectors = column.flatten().to_numpy().reshape(len(column), -1)
        return centres

    @property
    @abstractmethod
    def _pairs(self) -> Shards:
        """The shards of pairs."""

    @abstractmethod
    def _find_pairs(self, number: int) -> pa.Table:
        """The pairs of a shard."""

    @abstractmethod
    def _vectors(self, stored: list[bytes]) -> Vectors:
        """Vectors of unit length (n, d) from what the rows hold; zero for a picture that is like no other."""

    def _share_cell(self, stored: list[bytes]) -> bool:
        """Whether two pictures share a cell."""
        vectors = self._vectors(stored)
        if not vectors.any(1).all():
            return False
        cells, other_cells = nearest_cells(vectors, self.centres, self.searched)
        return bool(np.isin(cells, other_cells).any())

    @property
    def _no_keys(self) -> NDArray[Any]:
        return np.zeros(0, ROWS.field(self.key).type.to_pandas_dtype())

    @property
    def _centres(self) -> Shards:
        return self._shards("centres", 1)

    @property
    def _cells(self) -> Shards:
        return self._shards("cells", len(self.files))

    def _shards(self, stage: str, count: int) -> Shards:
        name = f"against-{self.prefix}{stage}" if self.other else f"{self.prefix}{stage}"
        return Shards.of(self.run / "shards" / name, count, 1)

    def _find_centres(self, number: int) -> pa.Table:
        sample = (batch[self.column].drop_null() for batch in _sample(self.files, self.column))
        centres = find_centres(np.concatenate([self._vectors(held.to_pylist()) for held in sample if len(held)]))
        return pa.table({"centre": pa.FixedSizeListArray.from_arrays(centres.ravel(), centres.shape[1])})

    def _find_cells(self, number: int) -> pa.Table:
        """The cells of each key of a file, in order of the cells."""
        found_cells, found_keys = [np.zeros(0, np.uint16)], [self._no_keys]
        for batch in row_batches(self.files[number], [self.key, self.column], BATCH):
            batch = batch.filter(batch[self.column].is_valid())
            if not len(batch):
                continue
            vectors = self._vectors(batch[self.column].to_pylist())
            lit = vectors.any(1)  # a flat picture is like no other
            cells = nearest_cells(vectors[lit], self.centres, self.searched)
            found_cells.append(cells.ravel())
            found_keys.append(np.repeat(batch[self.key].to_numpy()[lit], cells.shape[1]))
        cells, keys = _each_once(np.concatenate(found_cells), np.concatenate(found_keys))
        return pa.table({"cell": cells, self.key: keys})

    def _range(self, number: int, of: int, files: range) -> tuple[Cells, NDArray[Any]]:
        """Range `number`, of `of`, of the cells with their keys, of some files, by their places."""
        all_cells, all_keys = [np.zeros(0, np.uint16)], [self._no_keys]
        limits = [len(self.centres) * limit // of for limit in (number, number + 1)]
        for place in files:
            with pq.ParquetFile(self._cells.path(place)) as file:
                table = file.read()
            cells = table["cell"].to_numpy()
            start, stop = np.searchsorted(cells, limits)
            all_cells.append(cells[start:stop])
            all_keys.append(table[self.key].to_numpy()[start:stop])
        return np.concatenate(all_cells), np.concatenate(all_keys)


@dataclass(frozen=True)
class Search(Sharded):
    """The search for pairs of near perceptual hashes.

    Up to `many` hashes all pairs within seven bits are found. Of more, all within three bits, a shard a table, and
    those within seven of which two pictures share a cell. The files of pairs hold `one` and `other`, the lower and the
    higher hash.

    Attributes:
        many: Hashes, of more of which not all pairs are found.
    """

    many: int = field(default_factory=lambda: MANY)

    key: ClassVar[str] = "perceptual"
    column: ClassVar[str] = "embedding"

    @property
    def rule(self) -> str:
        """What makes two pictures one, as results are labelled with it."""
        return RULE

    @cached_property
    def hashes(self) -> Hashes:
        """All perceptual hashes, each once, in order."""
        of_files = [np.unique(_column(path, "perceptual")) for path in self.files]
        return np.unique(np.concatenate([np.zeros(0, np.uint64), *of_files]))

    @property
    def is_exact(self) -> bool:
        """Whether all pairs within seven bits are found."""
        return len(self.hashes) <= self.many

    @property
    def how(self) -> str:
        """How pairs are found, in words."""
        if self.is_exact:
            return f"all pairs within {SEVEN_BITS.bits} bits"
        cells = f"share one of their {SEARCHED} nearest of {len(self.centres):,} cells of embeddings"
        return f"all pairs within {THREE_BITS.bits} bits, and those within {SEVEN_BITS.bits} that {cells}"

    def meets(self, one: Looks, other: Looks) -> bool:
        """Whether two pictures would be compared, were they among the rows."""
        bits = (one.perceptual ^ other.perceptual).bit_count()
        if self.is_exact or bits <= THREE_BITS.bits:
            return bits <= SEVEN_BITS.bits
        return bits <= SEVEN_BITS.bits and self._share_cell([one.embedding, other.embedding])

    def finds(self, one: Looks, other: Looks) -> bool:
        """Whether two pictures would be found to be one, were they among the rows."""
        return self.meets(one, other) and are_near_duplicates(one, other)

    @cached_property
    def _pairs(self) -> Shards:
        if self.is_exact:
            return self._shards("pairs", SEVEN_BITS.count)
        return self._shards("pairs", THREE_BITS.count + RANGES)

    def _vectors(self, stored: list[bytes]) -> Vectors:
        return brightness(stored)

    def _find_pairs(self, number: int) -> pa.Table:
        if self.is_exact:
            return _pair_table(near_in_table(self.hashes, SEVEN_BITS, number))
        if number < THREE_BITS.count:
            return _pair_table(near_in_table(self.hashes, THREE_BITS, number))
        cells, hashes = self._range(number - THREE_BITS.count, RANGES, range(len(self.files)))
        return _pair_table(near_in_cells(cells, hashes))


def _writing(shards: Shards, find: Callable[[int], pa.Table]) -> Callable[[int], None]:
    """What makes a shard of a stage, by its number."""

    def do(number: int) -> None:
        table = find(number)
        with atomic(shards.path(number)) as temporary:
            pq.write_table(table.replace_schema_metadata(shards.footer(number, len(table))), temporary)

    return do


def _column(path: Path, name: str) -> Hashes:
    """A column of a file, without what is missing."""
    with pq.ParquetFile(path) as file:
        column: Hashes = file.read([name])[name].drop_null().to_numpy()
    return column


def _sample(files: Iterable[Path], column: str) -> Iterator[pa.RecordBatch]:
    """A column of some `SAMPLE` rows: groups of rows that have it, of all files, at equal distances."""
    groups = []
    for path in files:
        for number, held in enumerate(held_in_groups(path, column)):
            if held:
                groups.append((path, number, held))
    step = max(sum(held for _, _, held in groups) // SAMPLE, 1)
    for path, number, _ in groups[::step]:
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(BATCH, row_groups=[number], columns=[column])


def held_in_groups(path: Path, column: str) -> list[int]:
    """In how many rows of each group of rows of a file a column is not missing; no row is read."""
    metadata, place = pq.read_metadata(path), ROWS.get_field_index(column)
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    return [group.num_rows - group.column(place).statistics.null_count for group in groups]


def _each_once(one: NDArray[Any], other: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Pairs in order, each once."""
    order = np.lexsort((other, one))
    one, other = one[order], other[order]
    new = np.ones(len(one), np.bool_)
    new[1:] = (one[1:] != one[:-1]) | (other[1:] != other[:-1])
    return one[new], other[new]


def _pair_table(pairs: Iterable[tuple[Hashes, Hashes]]) -> pa.Table:
    nothing = np.zeros(0, np.uint64)
    found = [(nothing, nothing), *pairs]
    one, other = _each_once(*(np.concatenate(side) for side in zip(*found, strict=True)))
    return pa.table({"one": one, "other": other})
