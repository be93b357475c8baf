"""Significance that survives many tests at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
EULER = 0.5772156649015329


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


def _step_up(p: Floats, factor: float) -> Floats:
    order = np.argsort(p, kind="stable")
    scaled = p[order] * factor / np.arange(1, len(p) + 1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum.accumulate(scaled[::-1])[::-1].clip(max=1)
    return adjusted


def _harmonic(n: int) -> float:
    """1 + 1/2 + … + 1/n."""
    return float((1 / np.arange(1, n + 1)).sum()) if n < 1000 else float(np.log(n) + EULER + 1 / (2 * n))
