"""Are generated pictures nearer to the training pictures than to pictures the model never saw?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from unmemorize.metrics.discovery import Floats


@dataclass(frozen=True)
class Nearness:
    """How many of `images` have a training picture nearer than any held-out one, and how likely chance is to do that.

    A tie counts half.
    """

    images: int
    nearer: float
    p_value: float


def nearness_test(
    training: Floats,
    held_out: Floats,
    *,
    paired: bool,
    groups: NDArray[np.int64] | None = None,
    rounds: int = 1999,
    seed: int = 0,
) -> Nearness:
    """Permutation test of which of two sets of pictures generated pictures are nearest to.

    If the model knew neither set, the names "training" and "held out" could be exchanged: the count of generated
    pictures that are nearer to the training set is compared with that under random exchanges. Groups of duplicates are
    exchanged, neither generations nor single pictures, so many generations of one picture that is there many times
    count as the one finding they are. An image's nearest picture is the same under every exchange; only the name it
    goes by changes.

    Args:
        training: Distances (images, m) of the generated pictures to the training pictures.
        held_out: Distances (images, k) to pictures that were not trained on.
        paired: Column j of both belongs together (a picture and its mirror image): exchange within pairs only.
        groups: A number per picture, (m + k,), training pictures first, the same for duplicates: see
            `metrics/duplicates.py`. Each picture is its own group by default. Paired, all pairs that groups connect
            are exchanged together. Unpaired, a group with pictures of both sets counts half: what duplicates a
            training picture was not held out.
        rounds: Random exchanges.
        seed: Of the exchanges.

    Raises:
        ValueError: The pairs do not match, or there is not one group number per picture.
    """
    m, total = training.shape[1], training.shape[1] + held_out.shape[1]
    if paired and training.shape != held_out.shape:
        raise ValueError(f"expected pairs of columns, got {training.shape} and {held_out.shape}")
    names = np.arange(total) if groups is None else np.asarray(groups)
    if names.shape != (total,):
        raise ValueError(f"expected {total} group numbers, got {names.shape}")
    unit = _pairs_together(names, m) if paired else np.unique(names, return_inverse=True)[1]
    units = int(unit.max()) + 1
    weight = _nearest(np.hstack([training, held_out]))
    inside, outside = np.bincount(unit[:m], weight[:m], units), np.bincount(unit[m:], weight[m:], units)
    rng = np.random.default_rng(seed)
    if paired:
        counts = [np.where(rng.random(units) < 0.5, inside, outside).sum() for _ in range(rounds)]
    else:
        trained, held = np.bincount(unit[:m], minlength=units) > 0, np.bincount(unit[m:], minlength=units) > 0
        both, size = trained & held, inside + outside
        inside = np.where(both, size / 2, inside)
        exchanged = int((trained & ~both).sum())
        counts = [inside[both].sum() + rng.permutation(size[~both])[:exchanged].sum() for _ in range(rounds)]
    observed = float(inside.sum())
    as_high = int((np.array(counts) >= observed - 1e-9).sum())  # sums in another order differ in the last bits
    return Nearness(len(training), observed, (1 + as_high) / (1 + rounds))


def _pairs_together(names: NDArray[np.int64], m: int) -> NDArray[np.int64]:
    """A number per column (2m,): the same for the two of a pair, and for all pairs that groups connect."""
    group = np.unique(names, return_inverse=True)[1]
    groups = int(group.max()) + 1
    links = coo_array((np.ones(m), (group[:m], group[m:])), shape=(groups, groups))
    return np.asarray(connected_components(links, directed=False)[1][group])


def _nearest(distances: Floats) -> Floats:
    """How many rows each column is the smallest of; a row whose smallest is there several times is shared out."""
    smallest = distances == distances.min(1, keepdims=True)
    return np.asarray((smallest / smallest.sum(1, keepdims=True)).sum(0))
