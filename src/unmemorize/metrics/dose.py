"""What copy risk a number of copies predicts: the dose-response curve measured on the testbed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path

import numpy as np

from unmemorize.core.results import Interval


@dataclass(frozen=True)
class Dose:
    """The measured copy rate of pictures that were `copies` times in the training set, under one caption."""

    copies: int
    rate: Interval


def load_curve(path: Path) -> tuple[Dose, ...]:
    """Read a curve, by number of copies."""
    points = json.loads(path.read_text(encoding="utf-8"))["points"]
    return tuple(Dose(p["copies"], Interval(p["rate"], p["low"], p["high"])) for p in sorted(points, key=_copies))


def _copies(point: dict[str, int]) -> int:
    return point["copies"]


def predicted_risk(curve: Sequence[Dose], copies: int) -> Interval:
    """The copy rate at `copies`: linear in log copies between measured points, constant beyond them."""
    at = [log(dose.copies) for dose in curve]
    value, low, high = (
        float(np.interp(log(max(copies, 1)), at, [getattr(dose.rate, end) for dose in curve]))
        for end in ("value", "low", "high")
    )
    return Interval(value, low, high)
