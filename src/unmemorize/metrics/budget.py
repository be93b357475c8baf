"""What an attack's copies mean beside its control: the search budget, and the work to extract a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from unmemorize.core.records import Interval
from unmemorize.metrics.ranking import rate_interval


def rates(copied: NDArray[np.bool_]) -> list[Interval]:
    """The copy rate at each step, with intervals over pictures; `copied` is (n, restarts, steps, seeds).

    Raises:
        ValueError: There are no pictures, restarts or seeds.
    """
    hits, trials = copied.sum(axis=(1, 3)), copied.shape[1] * copied.shape[3]
    return [rate_interval(hits[:, step], [trials] * len(hits)) for step in range(copied.shape[2])]


def extracted(copied: NDArray[np.bool_]) -> list[Interval]:
    """The share of pictures with a copy within each number of updates, with intervals over pictures.

    A picture counts as soon as any of its generations is a copy: any restart, any seed, any number of updates so far.
    Attacked pictures and controls are to be counted like this alike: the more generations a picture has, the more often
    chance alone gives a copy. `copied` is (n, restarts, steps, seeds).
    """
    back = np.maximum.accumulate(copied.any(axis=(1, 3)), axis=1)
    return [rate_interval(hits.tolist(), [1] * len(hits)) for hits in back.T]


def search_budget(steps: Sequence[int], controls: Sequence[Sequence[Interval]], bound: float) -> int | None:
    """The largest number of updates within which no control's share exceeds `bound`; None where one does before any.

    The shares are those of `extracted`. An attack that was given more updates finds pictures that the model does not
    hold: its copies are no extraction.
    """
    budget = None
    for index, step in enumerate(steps):
        if any(control[index].value > bound for control in controls):
            break
        budget = step
    return budget


def work_to_extract(copied: NDArray[np.bool_], spent: Sequence[float]) -> NDArray[np.float64]:
    """Evaluations until a picture's first copy, the median over restarts, (n,); infinite where it was not extracted.

    `copied` is (n, restarts, steps, seeds), `spent` the evaluations an attack has made at each of these steps. An even
    number of restarts has the higher of the two middle values, so that half of them being in vain counts as never.
    """
    copies = np.asarray(copied.any(axis=3))
    first = np.where(copies.any(axis=2), np.asarray(spent, float)[copies.argmax(axis=2)], np.inf)
    return np.sort(first, axis=1)[:, first.shape[1] // 2]
