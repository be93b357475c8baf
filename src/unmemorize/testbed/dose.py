"""The shipped model's dose-response curve, as `python benchmarks testbed` measured it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from unmemorize.metrics.dose import Dose, load_curve

CURVE = Path(__file__).parent / "assets" / "dose.json"


@cache
def dose_curve() -> tuple[Dose, ...]:
    """How often the shipped model copies a picture, by the picture's number of copies."""
    return load_curve(CURVE)
