"""Pairs of 64-bit hashes that differ in few bits, without a comparison of all pairs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise
from math import comb

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]

LENGTH = 64  # bits of a hash
CHUNK = 1 << 21  # candidate pairs that are compared at once: 100 MB


@dataclass(frozen=True)
class Tables:
    """Tables of keys in which all hashes within `bits` bits of each other meet.

    A hash is cut into `blocks` blocks, and every choice of `chosen` of them is the key of one table. By the pigeonhole
    principle two hashes within `bits` bits agree in the key of some table, but for at most `flips` bits (0 or 1).

    Paper: Manku, Jain and Das Sarma 2007, Detecting near-duplicates for web crawling, section 3 (`flips` 0); Norouzi,
        Punjani and Fleet 2012, Fast search in Hamming space with multi-index hashing, section 3 (`flips` 1).
    """

    bits: int
    blocks: int
    chosen: int
    flips: int

    @property
    def count(self) -> int:
        """How many tables there are."""
        return comb(self.blocks, self.chosen)


# Of n uniform hashes seven bits compare n²/1928 pairs, 5e8 of a million; three bits n²/4e8, 2e5 of ten million.
SEVEN_BITS = Tables(bits=7, blocks=4, chosen=1, flips=1)
THREE_BITS = Tables(bits=3, blocks=6, chosen=3, flips=0)


def near_hashes(hashes: Hashes, tables: Tables, most: int | None = None) -> Iterator[tuple[Hashes, Hashes]]:
    """All pairs of different hashes within `tables.bits` bits; a pair comes once for each table it meets in.

    Args:
        hashes: Hashes (n,), each once.
        tables: How they are looked for.
        most: Hashes of one key that each is compared with, all by default.

    Yields:
        The lower and the higher hash of some pairs, (m,) each.
    """
    for number in range(tables.count):
        yield from near_in_table(hashes, tables, number, most)


def near_in_table(
    hashes: Hashes, tables: Tables, number: int, most: int | None = None
) -> Iterator[tuple[Hashes, Hashes]]:
    """`near_hashes` of one table, by its number from 0."""
    edges = [LENGTH * block // tables.blocks for block in range(tables.blocks + 1)]
    blocks = list(pairwise(edges))
    chosen = list(combinations(blocks, tables.chosen))[number]
    order = [*chosen, *(block for block in blocks if block not in chosen)]
    width = sum(end - start for start, end in chosen)
    # Sorted with the key in front, hashes of one key stand side by side.
    reordered = np.sort(_reordered(hashes, order))
    keys = reordered >> np.uint64(LENGTH - width)
    for first, second in _candidates(keys, width, tables.flips, len(keys) if most is None else most):
        one, other = reordered[first], reordered[second]
        near = np.bitwise_count(one ^ other) <= tables.bits
        if near.any():
            restored = _restored(one[near], order), _restored(other[near], order)
            yield np.minimum(*restored), np.maximum(*restored)


def _reordered(hashes: Hashes, order: list[tuple[int, int]]) -> Hashes:
    """Hashes with their blocks, given as (start, end) bits, in another order, the first one highest."""
    result = np.zeros_like(hashes)
    for start, end in order:
        width = np.uint64(end - start)
        block = (hashes >> np.uint64(start)) & _lowest(width)
        result = (result << width) | block
    return result


def _restored(reordered: Hashes, order: list[tuple[int, int]]) -> Hashes:
    """The hashes that `_reordered` was given."""
    result = np.zeros_like(reordered)
    for start, end in reversed(order):
        width = np.uint64(end - start)
        result |= (reordered & _lowest(width)) << np.uint64(start)
        reordered = reordered >> width
    return result


def _lowest(width: np.uint64) -> np.uint64:
    """A mask of the lowest `width` bits."""
    return (np.uint64(1) << width) - np.uint64(1)


def _candidates(keys: Hashes, width: int, flips: int, most: int) -> Iterator[tuple[Places, Places]]:
    """Places in the sorted keys of `width` bits whose keys are equal or, with `flips`, differ in one bit.

    A place comes with the first `most` of those of a key alone.
    """
    ends = np.append(np.flatnonzero(keys[1:] != keys[:-1]) + 1, len(keys))
    after = np.repeat(ends, np.diff(ends, prepend=0)) if len(keys) else ends[:0]
    places = np.arange(len(keys))
    yield from _ranges(places, places + 1, np.minimum(after, places + 1 + most))
    for bit in range(width if flips else 0):
        lower = np.flatnonzero((keys >> bit) & 1 == 0)  # the higher key of a pair finds it as well
        flipped = keys[lower] | (1 << bit)
        start, stop = (np.searchsorted(keys, flipped, side) for side in ("left", "right"))
        yield from _ranges(lower, start, np.minimum(stop, start + most))


def _ranges(places: Places, start: Places, stop: Places) -> Iterator[tuple[Places, Places]]:
    """Each place paired with all from its `start` to before its `stop`, in chunks of some million pairs."""
    some = stop > start
    places, start, count = places[some], start[some], (stop - start)[some]
    total = np.cumsum(count)
    low = 0
    while low < len(places):
        done = total[low] - count[low]
        high = max(int(np.searchsorted(total, done + CHUNK, "right")), low + 1)
        chunk = count[low:high]
        first_of_each = total[low:high] - chunk - done
        second = np.arange(total[high - 1] - done) + np.repeat(start[low:high] - first_of_each, chunk)
        yield np.repeat(places[low:high], chunk), second
        low = high
