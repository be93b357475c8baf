"""Thresholds from ordinary prompts: how high a score must be to be no chance."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from unmemorize.core.errors import NotApplicable


def conformal_threshold(ordinary: Sequence[float], *, false_alarms: float = 0.01) -> float:
    """The score that a new ordinary prompt exceeds with probability at most `false_alarms`.

    The ⌈(n + 1)(1 − α)⌉-th smallest of n ordinary scores: exact in any finite sample if the new prompt is drawn like
    them, whatever their distribution (split conformal prediction).

    Raises:
        NotApplicable: There are too few ordinary scores for so small a share.
    """
    rank = math.ceil((len(ordinary) + 1) * (1 - false_alarms))
    if rank > len(ordinary):
        need = math.ceil(1 / false_alarms) - 1
        raise NotApplicable(f"a threshold for {false_alarms:.1%} false alarms needs {need} ordinary prompts or more")
    return float(np.sort(np.asarray(ordinary, float))[rank - 1])
