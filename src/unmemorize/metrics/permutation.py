"""Are generated pictures nearer to the training pictures than to pictures the model never saw?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unmemorize.metrics.discovery import Floats


@dataclass(frozen=True)
class Nearness:
    """How many of `images` have a training picture nearer than any held-out one, and how likely chance is to do that.

    A tie counts half.
    """

    images: int
    nearer: float
    p_value: float


def nearness_test(training: Floats, held_out: Floats, *, paired: bool, rounds: int = 1999, seed: int = 0) -> Nearness:
    """Permutation test of which of two sets of pictures generated pictures are nearest to.

    If the model knew neither set, the names "training" and "held out" could be exchanged: the count of generated
    pictures that are nearer to the training set is compared with that under random exchanges. The pictures, not the
    generations, are exchanged, so many generations of one picture count as the one finding they are. An image's nearest
    picture is the same under every exchange; only the name it goes by changes.

    Args:
        training: Distances (images, m) of the generated pictures to the training pictures.
        held_out: Distances (images, k) to pictures that were not trained on.
        paired: Column j of both belongs together (a picture and its mirror image): exchange within pairs only.
        rounds: Random exchanges.
        seed: Of the exchanges.

    Raises:
        ValueError: The pairs do not match.
    """
    if paired and training.shape != held_out.shape:
        raise ValueError(f"expected pairs of columns, got {training.shape} and {held_out.shape}")
    weight, m = _nearest(np.hstack([training, held_out])), training.shape[1]
    rng = np.random.default_rng(seed)
    observed, as_high = float(weight[:m].sum()), 0
    for _ in range(rounds):
        if paired:
            count = np.where(rng.random(m) < 0.5, weight[:m], weight[m:]).sum()
        else:
            count = rng.permutation(weight)[:m].sum()
        as_high += count >= observed - 1e-9  # sums in another order differ in the last bits
    return Nearness(len(training), observed, (1 + as_high) / (1 + rounds))


def _nearest(distances: Floats) -> Floats:
    """How many rows each column is the smallest of; a row whose smallest is there several times is shared out."""
    smallest = distances == distances.min(1, keepdims=True)
    return (smallest / smallest.sum(1, keepdims=True)).sum(0)
