"""Significance that survives many tests at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln

Floats = NDArray[np.float64]
EULER = 0.5772156649015329
PRECISION = 1e-12  # of a sum, relative


def false_discovery(p: Floats, tests: int) -> Floats:
    """Adjusted p-values: rejecting those below q keeps the expected share of false rejections below q.

    `p` holds the smallest of `tests` p-values; those left out count as 1. The bound holds under any dependence between
    the tests, which n-grams of the same captions need.

    Paper: Benjamini and Yekutieli 2001.

    Raises:
        ValueError: There are more p-values than tests.
    """
    if len(p) > tests:
        raise ValueError(f"expected at most {tests} p-values, got {len(p)}")
    return _step_up(p, tests * _harmonic(tests))


def benjamini_hochberg(p: Floats) -> Floats:
    """Adjusted p-values: rejecting those at or below q keeps the expected share of false rejections at or below q.

    For independent tests, and for conformal p-values of one calibration set.

    Paper: Benjamini and Hochberg 1995; Bates et al. 2023 (for conformal p-values, which are dependent).
    """
    return _step_up(p, len(p))


def hypergeometric_tail(times: ArrayLike, total: ArrayLike, size: ArrayLike, population: int) -> Floats:
    """The probability that `size` items, drawn at random from a population, hold at least `times` of the marked ones.

    `total` of the `population` items are marked.

    The first term of the shorter tail, and then each by its ratio to the one before. SciPy's function has the same
    values, and takes milliseconds for each where there are millions of items.
    """
    k, marked, drawn = np.broadcast_arrays(*(np.asarray(v, float) for v in (times, total, size)))
    # Up to the expected number this tail is the long one: there it is 1 less that of the items that are not marked.
    below = k <= drawn * marked / population
    k = np.where(below, drawn - k + 1, k)
    marked = np.where(below, population - marked, marked)
    most = np.minimum(marked, drawn)
    possible, k = k <= most, np.minimum(k, most)
    logarithm = _log_choose(marked, k) + _log_choose(population - marked, drawn - k) - _log_choose(population, drawn)
    term = np.where(possible, np.exp(logarithm), 0)
    tail = term
    while (term > PRECISION * tail).any():
        term = term * (marked - k) * (drawn - k) / ((k + 1) * (population - marked - drawn + k + 1))
        tail, k = tail + term, k + 1
    return np.where(below, 1 - tail, tail)


def _log_choose(n: ArrayLike, k: ArrayLike) -> Floats:
    logarithm: Floats = gammaln(np.add(n, 1)) - gammaln(np.add(k, 1)) - gammaln(np.subtract(n, k) + 1)
    return logarithm


def _step_up(p: Floats, factor: float) -> Floats:
    order = np.argsort(p, kind="stable")
    scaled = p[order] * factor / np.arange(1, len(p) + 1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum.accumulate(scaled[::-1])[::-1].clip(max=1)
    return adjusted


def _harmonic(n: int) -> float:
    """1 + 1/2 + … + 1/n."""
    return float((1 / np.arange(1, n + 1)).sum()) if n < 1000 else float(np.log(n) + EULER + 1 / (2 * n))
