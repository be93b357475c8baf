"""The dose-response curve of the shipped branches, as `python benchmarks panel` measured it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from unmemorize.metrics.dose import Dose, load_curve

CURVE = Path(__file__).parent / "assets" / "dose.json"


@cache
def dose_curve() -> tuple[Dose, ...]:
    """How often the U-Net's branches copy a picture, by the picture's number of copies."""
    return load_curve(CURVE)
