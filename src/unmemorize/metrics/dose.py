"""What copy rate a number of copies predicts: the dose-response curve measured on the testbed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path

import numpy as np
from scipy.optimize import isotonic_regression

from unmemorize.core.records import Interval
from unmemorize.metrics.ranking import rate_interval


@dataclass(frozen=True)
class Dose:
    """The measured copy rate of `pictures` that were `copies` times in the training set, each under one caption."""

    copies: int
    rate: float
    pictures: int


def load_curve(path: Path) -> tuple[Dose, ...]:
    """Read a curve, by number of copies."""
    points = json.loads(path.read_text(encoding="utf-8"))["points"]
    doses = [Dose(p["copies"], p["rate"], p["pictures"]) for p in points]
    return tuple(sorted(doses, key=lambda dose: dose.copies))


def predicted_risk(curve: Sequence[Dose], copies: int) -> Interval:
    """The copy rate at `copies`, with its 95% interval; neither falls as copies rise.

    Measured rates that fall are pooled until none does. Between measured numbers of copies the rate is linear in log
    copies; the interval assumes only that it does not fall: it reaches from the highest lower limit measured up to
    `copies` to the lowest upper limit measured from there on, or to 1. Each limit is of one number of copies alone, so
    several that have the same rate (flat curves) hold it less often, 0.90 of the time instead of 0.95.

    Paper: Ayer et al. 1955, the isotonic estimate; Clopper and Pearson 1934 for each limit.
    """
    fit = isotonic_regression([dose.rate for dose in curve], weights=[dose.pictures for dose in curve])
    value = float(np.interp(log(max(copies, 1)), [log(dose.copies) for dose in curve], fit.x))
    low, high = 0.0, 1.0
    for dose in curve:
        measured = rate_interval([dose.rate] * dose.pictures, [1] * dose.pictures)
        if dose.copies <= copies:
            low = max(low, measured.low)
        if dose.copies >= copies:
            high = min(high, measured.high)
    return Interval(value, min(low, value), max(high, value))
