"""How far generated pictures are from real ones, as features: KID and FID, before and after a change, with intervals.

A measure is a function of weights, one a generated and one a real picture, that counts how often each is there: so the
bootstrap resamples without a picture ever being compared with its own copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unmemorize.core.records import Interval

Floats = NDArray[np.float64]
Measure = Callable[[Floats, Floats], float]


def kid(pictures: Floats, real: Floats) -> Measure:
    """The unbiased squared maximum mean discrepancy of features (n, d) and (m, d), kernel (x·y / d + 1)³.

    Paper: Bińkowski et al. 2018.
    Differs: over all pictures at once, not averaged over random subsets.
    """
    x, y = np.asarray(pictures, np.float64), np.asarray(real, np.float64)
    within_x, within_y, between = _kernel(x, x), _kernel(y, y), _kernel(x, y)
    for own in (within_x, within_y):
        np.fill_diagonal(own, 0)

    def measure(w: Floats, v: Floats) -> float:
        inside = (_off_diagonal(within_x, w), _off_diagonal(within_y, v))
        return float(sum(inside) - 2 * w @ between @ v / (w.sum() * v.sum()))

    return measure


def _kernel(x: Floats, y: Floats) -> Floats:
    kernel: Floats = (x @ y.T / x.shape[1] + 1) ** 3
    return kernel


def _off_diagonal(kernel: Floats, w: Floats) -> float:
    pairs = w.sum() ** 2 - (w**2).sum()
    return float(w @ kernel @ w / pairs) if pairs else float("nan")  # one picture, drawn every time


def fid(pictures: Floats, real: Floats) -> Measure:
    """The Fréchet distance of Gaussians fitted to features (n, d) and (m, d): it shrinks with n and m, so keep them.

    ‖μ − μ'‖² + tr(Σ + Σ' − 2 (Σ Σ')^½).

    Paper: Heusel et al. 2017.
    """
    x, y = np.asarray(pictures, np.float64), np.asarray(real, np.float64)

    def measure(w: Floats, v: Floats) -> float:
        (mean, cov), (real_mean, real_cov) = _gaussian(x, w), _gaussian(y, v)
        root = np.sqrt(np.linalg.eigvals(cov @ real_cov).astype(complex)).real.sum()  # small ones may round below 0
        return float(np.square(mean - real_mean).sum() + np.trace(cov) + np.trace(real_cov) - 2 * root)

    return measure


def _gaussian(x: Floats, w: Floats) -> tuple[Floats, Floats]:
    mean = w @ x / w.sum()
    centred = x - mean
    return mean, (w[:, None] * centred).T @ centred / (w.sum() - 1)


def mean_of(values: Floats) -> Measure:
    """The mean of one value a generated picture, such as its alignment."""
    x = np.asarray(values, np.float64)
    return lambda w, v: float(w @ x / w.sum())


@dataclass(frozen=True)
class Change:
    """A measure before and after, and their ratio less one, each with its 95% interval."""

    before: Interval
    after: Interval
    change: Interval


def compare(
    before: Measure, after: Measure, clusters: Sequence[str], real: int, *, rounds: int = 500, seed: int = 0
) -> Change:
    """Two sets of pictures of the same prompts and seeds, resampled together.

    Args:
        before: A measure of the first set.
        after: The same of the second.
        clusters: The cluster of related prompts that each picture belongs to: clusters are resampled whole.
        real: How many real pictures there are; they are resampled one by one.
        rounds: Of the bootstrap.
        seed: Of the bootstrap.
    """
    rng = np.random.default_rng(seed)
    member = np.unique(np.asarray(clusters), return_inverse=True)[1]
    groups, ones = int(member.max()) + 1, np.ones(real)
    resampled = []
    for _ in range(rounds):
        w = np.bincount(rng.integers(groups, size=groups), minlength=groups)[member].astype(np.float64)
        v = np.bincount(rng.integers(real, size=real), minlength=real).astype(np.float64)
        resampled.append(_three(before(w, v), after(w, v)))
    low, high = np.nanquantile(resampled, [0.025, 0.975], axis=0)
    values = _three(before(np.ones(len(member)), ones), after(np.ones(len(member)), ones))
    return Change(*(Interval(v, float(a), float(b)) for v, a, b in zip(values, low, high, strict=True)))


def _three(before: float, after: float) -> tuple[float, float, float]:
    return before, after, after / before - 1 if before else float("nan")
