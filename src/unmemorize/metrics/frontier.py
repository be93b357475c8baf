"""The best that settings of one mitigation reach, as one number."""

from __future__ import annotations

from collections.abc import Sequence

LARGEST = 0.25  # loss, a share, up to which settings are compared: beyond it hardly anybody would go


def frontier_area(losses: Sequence[float], left: Sequence[float], largest: float = LARGEST) -> float:
    """The mean, over losses from 0 to `largest`, of the smallest share that a setting of no larger loss leaves.

    0 where a setting without a loss leaves nothing; 1 where none that loses less than `largest` leaves less than all:
    the model as it came is a setting, too.

    Args:
        losses: What each setting costs, a share; below 0 counts as none.
        left: What it leaves of what there was before, a share.
        largest: The end of the range.
    """
    area, least, reached = 0.0, 1.0, 0.0
    for loss, share in sorted(zip(losses, left, strict=True)):
        if loss >= largest:
            break
        area += least * (max(loss, 0) - reached)
        least, reached = min(least, share), max(loss, 0)
    return (area + least * (largest - reached)) / largest
