"""Choose some of many items evenly, without random numbers."""

from __future__ import annotations

import numpy as np


def evenly(total: int, count: int) -> list[int]:
    """Indices of at most `count` of `total` items, evenly spaced from the first to the last."""
    return [int(place) for place in np.linspace(0, total - 1, min(count, total)).round()]
