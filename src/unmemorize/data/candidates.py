"""Which pictures are compared: pairs of perceptual hashes within seven bits, found in shards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from unmemorize.core.crew import Idle, never
from unmemorize.core.run import atomic, require_same_versions
from unmemorize.core.shards import Shards
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
BATCH = 8192  # embeddings that are held at once: 13 MB, and 34 of their products with the centres
COLUMNS = ["perceptual", "embedding"]
PERCEPTUAL = ROWS.get_field_index("perceptual")


@dataclass(frozen=True)
class Search:
    """The search for pairs of near perceptual hashes among the rows of a run, in shards that processes share.

    Up to `many` hashes all pairs within seven bits are found. Of more, all within three bits, and those within seven of
    which two pictures share a cell: a shard makes the cells, one a file of rows puts its pictures into them, and one a
    table or a range of cells finds the pairs.

    Attributes:
        run: The run directory.
        other: Another run, whose rows are searched with them.
        many: Hashes, of more of which not all pairs are found.
    """

    run: Path
    other: Path | None = None
    many: int = field(default_factory=lambda: MANY)

    @cached_property
    def files(self) -> list[Path]:
        """The files of the rows."""
        return [*rows_of(self.run), *(rows_of(self.other) if self.other else [])]

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
        """The files of the pairs that were found: `one` and `other`, the lower and the higher hash."""
        return [self._pairs.path(number) for number in range(self._pairs.count)]

    def meets(self, one: Looks, other: Looks) -> bool:
        """Whether two pictures would be compared, were they among the rows."""
        bits = (one.perceptual ^ other.perceptual).bit_count()
        if self.is_exact or bits <= THREE_BITS.bits:
            return bits <= SEVEN_BITS.bits
        vectors = brightness([one.embedding, other.embedding])
        if not vectors.any(1).all():
            return False
        cells, other_cells = nearest_cells(vectors, self.centres)
        return bits <= SEVEN_BITS.bits and bool(np.isin(cells, other_cells).any())

    @cached_property
    def centres(self) -> Vectors:
        """The centres of the cells (k, 256), once they are made."""
        column = pq.read_table(self._centres.path(0))["centre"].combine_chunks()
        centres: Vectors = column.flatten().to_numpy().reshape(len(column), -1)
        return centres

    @property
    def _centres(self) -> Shards:
        return self._shards("centres", 1)

    @property
    def _cells(self) -> Shards:
        return self._shards("cells", len(self.files))

    @cached_property
    def _pairs(self) -> Shards:
        if self.is_exact:
            return self._shards("pairs", SEVEN_BITS.count)
        return self._shards("pairs", THREE_BITS.count + RANGES)

    def _shards(self, stage: str, count: int) -> Shards:
        name = f"against-{stage}" if self.other else stage
        return Shards.of(self.run / "shards" / name, count, 1)

    def _find_centres(self, number: int) -> pa.Table:
        vectors = np.concatenate([_looks(batch)[1] for batch in _sample(self.files)])
        centres = find_centres(vectors)
        return pa.table({"centre": pa.FixedSizeListArray.from_arrays(centres.ravel(), centres.shape[1])})

    def _find_cells(self, number: int) -> pa.Table:
        """The cells of each hash of a file, in order of the cells."""
        found_cells, found_hashes = [np.zeros(0, np.uint16)], [np.zeros(0, np.uint64)]
        for batch in row_batches(self.files[number], COLUMNS, BATCH):
            hashes, vectors = _looks(batch)
            lit = vectors.any(1)  # a flat picture is like no other
            cells = nearest_cells(vectors[lit], self.centres)
            found_cells.append(cells.ravel())
            found_hashes.append(np.repeat(hashes[lit], cells.shape[1]))
        cells, hashes = _each_once(np.concatenate(found_cells), np.concatenate(found_hashes))
        return pa.table({"cell": cells, "perceptual": hashes})

    def _find_pairs(self, number: int) -> pa.Table:
        if self.is_exact:
            return _pair_table(near_in_table(self.hashes, SEVEN_BITS, number))
        if number < THREE_BITS.count:
            return _pair_table(near_in_table(self.hashes, THREE_BITS, number))
        return _pair_table(near_in_cells(*self._range(number - THREE_BITS.count)))

    def _range(self, number: int) -> tuple[Cells, Hashes]:
        """A range of cells with their hashes, of all files."""
        all_cells, all_hashes = [], []
        limits = [len(self.centres) * limit // RANGES for limit in (number, number + 1)]
        for place in range(len(self.files)):
            with pq.ParquetFile(self._cells.path(place)) as file:
                table = file.read()
            cells = table["cell"].to_numpy()
            start, stop = np.searchsorted(cells, limits)
            all_cells.append(cells[start:stop])
            all_hashes.append(table["perceptual"].to_numpy()[start:stop])
        return np.concatenate(all_cells), np.concatenate(all_hashes)


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


def _sample(files: Iterable[Path]) -> Iterator[pa.RecordBatch]:
    """Some `SAMPLE` rows: groups of rows with pictures, of all files, at equal distances."""
    groups = []
    for path in files:
        metadata = pq.read_metadata(path)
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            if group.column(PERCEPTUAL).statistics.null_count < group.num_rows:
                groups.append((path, number, group.num_rows))
    step = max(sum(rows for _, _, rows in groups) // SAMPLE, 1)
    for path, number, _ in groups[::step]:
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(BATCH, row_groups=[number], columns=COLUMNS)


def _looks(batch: pa.RecordBatch) -> tuple[Hashes, Vectors]:
    """The hashes of the rows with a picture, and their embeddings without colours."""
    batch = batch.filter(batch["perceptual"].is_valid())
    return batch["perceptual"].to_numpy(), brightness(batch["embedding"].to_pylist())


def _each_once(one: NDArray[Any], other: Hashes) -> tuple[NDArray[Any], Hashes]:
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
