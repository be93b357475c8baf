"""What runs leave behind for reports and programs; nothing here needs torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["passed", "issue", "inconclusive", "not applicable", "not run"]


@dataclass(frozen=True)
class Interval:
    """A statistic with its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Finding:
    """One code's outcome in a run; `count` is of what `title` names."""

    code: str
    title: str
    severity: Literal["high", "medium", "low"]
    state: State
    count: int
    evidence: str
    advice: str
    docs: str
