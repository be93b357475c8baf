"""Pairs of perceptual hashes within seven bits of pictures that look alike in embedding, cell by cell."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from unmemorize.data.hashes import unit
from unmemorize.data.near_hashes import SEVEN_BITS, THREE_BITS, Hashes, near_hashes

Vectors = NDArray[np.float32]
Cells = NDArray[np.uint16]

CELLS = 1024  # of ten million pictures some twenty thousand are in each
SEARCHED = 2  # nearest cells that a picture is in: a copy at the border of one is in the other
SAMPLE = 128 * CELLS  # pictures that cells are made of
ROUNDS = 10  # of k-means
BATCH = 8192  # vectors whose products with the centres are held at once: 34 MB
MOST = 1000  # hashes of one key that a hash of a cell is compared with


def find_centres(vectors: Vectors) -> Vectors:
    """The centres of `CELLS` cells by k-means, or of as many as there are vectors.

    Paper: Jégou, Douze and Schmid 2011, Product quantization for nearest neighbor search, section IV (the coarse
        quantizer, of which several cells are searched).
    Differs: Vectors are of unit length, and so are centres; of pairs in one cell the hashes decide what is compared.

    Args:
        vectors: Vectors of unit length (n, d), n > 0.

    Returns:
        Centres of unit length (k, d).
    """
    rng = np.random.default_rng(0)
    centres = vectors[rng.choice(len(vectors), min(CELLS, len(vectors)), replace=False)]
    for _ in range(ROUNDS):
        nearest = np.concatenate([nearest_cells(some, centres, 1)[:, 0] for some in _batches(vectors)])
        taken, starts = np.unique(np.sort(nearest), return_index=True)
        centres[taken] = unit(np.add.reduceat(vectors[nearest.argsort(kind="stable")], starts))
    return centres


def nearest_cells(vectors: Vectors, centres: Vectors, count: int) -> Cells:
    """The `count` nearest cells of each vector, the nearest first: (n, `count`), or all where there are fewer."""
    products = vectors @ centres.T
    found = []
    for _ in range(min(count, len(centres))):
        nearest = products.argmax(1)
        found.append(nearest.astype(np.uint16))
        products[np.arange(len(products)), nearest] = -np.inf
    return np.stack(found, 1)


def near_in_cells(cells: Cells, hashes: Hashes) -> Iterator[tuple[Hashes, Hashes]]:
    """Pairs of hashes of one cell that differ in four to seven bits; those of fewer meet without cells.

    Of more than `MOST` hashes with one key each is compared with the `MOST` that follow it: or cells of plain pictures,
    whose hashes are much the same, would take the square of their number.

    Args:
        cells: The cell of each hash, (n,).
        hashes: Hashes (n,), which may be in several cells.

    Yields:
        The lower and the higher hash of some pairs, (m,) each.
    """
    for cell in np.unique(cells):
        for one, other in near_hashes(np.unique(hashes[cells == cell]), SEVEN_BITS, MOST):
            further = np.bitwise_count(one ^ other) > THREE_BITS.bits
            yield one[further], other[further]


def _batches(vectors: Vectors) -> list[Vectors]:
    return [vectors[start : start + BATCH] for start in range(0, len(vectors), BATCH)]
