"""What methods return: frozen records, passed between kinds of method and written to run directories."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """A detector's scores, (prompts, seeds), higher = more memorized, and the denoiser evaluations they cost."""

    method: str
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    values: Tensor
    evaluations: int


@dataclass(frozen=True)
class Interval:
    """A statistic with its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Match:
    """A generated picture beside its nearest training picture.

    `value` is what the criterion judges, `distance` the plain distance; `verdict` tells verbatim copies from templates.
    """

    nearest: str
    distance: float
    value: float
    verdict: str
