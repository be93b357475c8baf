"""Pairs of pictures that an SSCD network takes for copies: by the products of their vectors, all or cell by cell."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from unmemorize.core.criteria import Criterion
from unmemorize.core.shards import Shards
from unmemorize.data.candidates import BATCH, Sharded, held_in_groups
from unmemorize.data.duplicates import components
from unmemorize.data.hashes import Looks, copy_cosine, unpack
from unmemorize.data.intake import row_batches, rows_of
from unmemorize.data.near_cells import Vectors

Halves = NDArray[np.float16]
Places = NDArray[np.int64]

MANY = 100_000  # vectors; of more not all pairs are compared. So many of 512 numbers take minutes: n² products
SEARCHED = 8  # nearest cells that a picture is in: cosines of 0.75 lie across more borders than those of 0.95
RANGES = 64  # of cells, or of all pairs: each is a shard, which holds the vectors of an eighth of all pictures at most
BLOCK = 1024  # vectors that are compared with as many at once: 4 MB of products
MOST = 100_000  # vectors of a cell that one is compared with
HELD = 1 << 21  # pairs that are held before they are joined: 32 MB


@dataclass(frozen=True)
class CopySearch(Sharded):
    """The search for pictures that a network takes for copies of each other.

    Up to `many` pictures all pairs are compared. Of more those that share a cell, each with the `MOST` that follow it
    there: or a cell of a million plain pictures would take the square of their number. Pictures of equal pixels are
    compared once. The files of pairs hold `one` and `other`, rows whose pictures are one, with or without others
    between them; with another run `row`, a row of this one, `other`, the row there that is nearest to it among those
    that the shard compares, and `sscd`, their cosine.

    Attributes:
        criterion: When two pictures are copies.
        many: Pictures, of more of which not all pairs are compared.
    """

    criterion: Criterion = field(kw_only=True)
    many: int = field(default_factory=lambda: MANY, kw_only=True)

    prefix: ClassVar[str] = "sscd-"
    key: ClassVar[str] = "row"
    column: ClassVar[str] = "sscd"
    searched: ClassVar[int] = SEARCHED

    @property
    def rule(self) -> str:
        """What makes two pictures one, as results are labelled with it."""
        return f"{self.criterion.recipe}-cosine-{self.criterion.threshold}"

    @property
    def how(self) -> str:
        """How pairs are found, in words."""
        if self.is_exact:
            return "all pairs of SSCD vectors"
        cells = f"share one of their {self.searched} nearest of {len(self.centres):,} cells"
        return f"pairs of SSCD vectors that {cells}"

    @cached_property
    def is_exact(self) -> bool:
        """Whether all pairs are compared."""
        return sum(sum(held_in_groups(path, self.column)) for path in self.files) <= self.many

    def finds(self, one: Looks, other: Looks) -> bool:
        """Whether two pictures would be found to be one, were they among the rows."""
        cosine = copy_cosine(one.sscd, other.sscd)
        if one.sscd is None or other.sscd is None or cosine is None or not self.criterion(cosine):
            return False
        return self.is_exact or self._share_cell([one.sscd, other.sscd])

    @property
    def _pairs(self) -> Shards:
        return self._shards("pairs", RANGES)

    def _vectors(self, stored: list[bytes]) -> Vectors:
        return unpack(stored)

    def _find_pairs(self, number: int) -> pa.Table:
        if self.other is None:
            members, leaders = joined(self._near(number))
            return pa.table({"one": leaders, "other": members})
        found = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32)), *self._nearest(number)]
        rows, others, cosines = (np.concatenate(column) for column in zip(*found, strict=True))
        return pa.table({"row": rows, "other": others, "sscd": cosines})

    def _near(self, number: int) -> Iterator[Places]:
        """The pairs of rows (n, 2) whose pictures are copies, of those that a shard compares."""
        for pictures, _, starts, most in self._compared(number):
            for one, other in near_vectors(pictures.vectors, self.criterion.threshold, starts, most):
                yield pictures.rows[np.stack([one, other], 1)]

    def _nearest(self, number: int) -> Iterator[tuple[Places, Places, Vectors]]:
        """Rows of this run, that of the other run that is the nearest copy, and their cosine."""
        for here, there, starts, most in self._compared(number):
            vectors = there.vectors[:most]
            for one, other, cosine in nearest_vectors(here.vectors, vectors, self.criterion.threshold, starts):
                yield here.rows[one], there.rows[other], cosine

    def _compared(self, number: int) -> Iterator[tuple[Pictures, Pictures, range, int]]:
        """What a shard compares: pictures of this run, in some blocks, with how many of the other run, or of this."""
        if self.is_exact:
            here, there = self._all
            yield here, there, range(number * BLOCK, len(here.rows), RANGES * BLOCK), len(there.rows)
            return
        count = len(rows_of(self.run))
        cells, keys = self._range(number, RANGES, range(count))
        here = read_pictures(rows_of(self.run), np.unique(keys))
        other_cells, other_keys, there = cells, keys, here
        if self.other is not None:
            other_cells, other_keys = self._range(number, RANGES, range(count, len(self.files)))
            there = read_pictures(rows_of(self.other), np.unique(other_keys))
        for cell in np.unique(cells):
            some = here.among(keys[cells == cell])
            yield some, there.among(other_keys[other_cells == cell]), range(0, len(some.rows), BLOCK), MOST

    @cached_property
    def _all(self) -> tuple[Pictures, Pictures]:
        """All pictures of this run, and of the other or, without one, of this one again."""
        here = read_pictures(rows_of(self.run))
        return here, here if self.other is None else read_pictures(rows_of(self.other))


@dataclass(frozen=True, eq=False)
class Pictures:
    """Rows (n,) of different pictures, in order, and their vectors (n, d)."""

    rows: Places
    vectors: Halves

    def among(self, rows: Places) -> Pictures:
        """Those of some rows."""
        kept = np.isin(self.rows, rows)
        return Pictures(self.rows[kept], self.vectors[kept])


def read_pictures(files: Iterable[Path], wanted: Places | None = None) -> Pictures:
    """The pictures of files of rows that have a vector, of equal pixels one; of the wanted rows alone, if given."""
    seen = set[bytes]()
    rows, vectors = [np.zeros(0, np.int64)], list[Halves]()
    for path in files:
        for batch in row_batches(path, ["row", "pixels", "sscd"], BATCH):
            batch = batch.filter(batch["sscd"].is_valid())
            if wanted is not None:
                batch = batch.filter(pa.array(np.isin(batch["row"].to_numpy(), wanted)))
            new = []
            for place, pixels in enumerate(batch["pixels"].to_pylist()):
                if pixels not in seen:
                    seen.add(pixels)
                    new.append(place)
            if new:
                batch = batch.take(pa.array(new))
                rows.append(batch["row"].to_numpy())
                vectors.append(unpack(batch["sscd"].to_pylist()).astype(np.float16))
    return Pictures(np.concatenate(rows), np.concatenate(vectors) if vectors else np.zeros((0, 0), np.float16))


def near_vectors(vectors: Halves, least: float, starts: Iterable[int], most: int) -> Iterator[tuple[Places, Places]]:
    """Pairs of vectors whose cosine is at least `least`.

    Args:
        vectors: Vectors of unit length (n, d).
        least: A cosine.
        starts: Where blocks of `BLOCK` vectors begin, whose vectors are compared with those that follow.
        most: With how many each is compared.

    Yields:
        The places of the first and the second vector of some pairs, (m,) each.
    """
    for start in starts:
        block = vectors[start : start + BLOCK].astype(np.float32)
        for other_start in range(start, min(start + BLOCK + most, len(vectors)), BLOCK):
            cosines = block @ vectors[other_start : other_start + BLOCK].astype(np.float32).T
            one, other = np.nonzero(cosines >= least)
            one, other = one + start, other + other_start
            compared = (one < other) & (other - one <= most)
            yield one[compared], other[compared]


def nearest_vectors(
    vectors: Halves, others: Halves, least: float, starts: Iterable[int]
) -> Iterator[tuple[Places, Places, Vectors]]:
    """The nearest other vector of each vector, the first of equals, where their cosine is at least `least`.

    Args:
        vectors: Vectors of unit length (n, d).
        others: Other vectors of unit length (m, d).
        least: A cosine.
        starts: Where blocks of `BLOCK` vectors begin that are compared.

    Yields:
        The places of some vectors and of their nearest ones, and the cosines, (k,) each.
    """
    for start in starts:
        block = vectors[start : start + BLOCK].astype(np.float32)
        nearest, highest = np.zeros(len(block), np.int64), np.full(len(block), -np.inf, np.float32)
        for other_start in range(0, len(others), BLOCK):
            cosines = block @ others[other_start : other_start + BLOCK].astype(np.float32).T
            places = cosines.argmax(1)
            values = cosines[np.arange(len(block)), places]
            better = values > highest
            nearest[better], highest[better] = places[better] + other_start, values[better]
        found = highest >= least
        yield start + np.flatnonzero(found), nearest[found], np.minimum(highest[found], 1)


def joined(batches: Iterable[Places]) -> tuple[Places, Places]:
    """The components of pairs of rows that come in batches (n, 2), of which no more than needed are held.

    Returns:
        Every row of a component but its first, and the first, (m,) each.
    """
    held, count, most = [np.zeros((0, 2), np.int64)], 0, HELD
    for pairs in batches:
        held.append(pairs)
        count += len(pairs)
        if count > most:
            held = [np.stack(components(np.concatenate(held)), 1)]
            count = len(held[0])
            most = count + HELD
    members, leaders = components(np.concatenate(held))
    return members[members != leaders], leaders[members != leaders]
