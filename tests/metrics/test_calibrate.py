"""Thresholds: exact in finite samples."""

from __future__ import annotations

import numpy as np
import pytest

from unmemorize.core.errors import NotApplicable
from unmemorize.metrics.calibrate import conformal_threshold


def test_by_hand():
    """Of 99 scores, 1% false alarms is the largest and 10% the tenth from the top."""
    scores = list(range(1, 100))
    assert conformal_threshold(scores, false_alarms=0.01) == 99
    assert conformal_threshold(scores, false_alarms=0.1) == 90


def test_new_prompts_raise_no_more_false_alarms_than_stated():
    """Over many draws, the share of fresh scores above the threshold is at most the stated one, and not far under."""
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(400):
        scores = rng.lognormal(size=120)
        rates.append(np.mean(rng.lognormal(size=500) > conformal_threshold(scores, false_alarms=0.05)))
    assert 0.035 < np.mean(rates) <= 0.052


def test_too_few_scores_do_not_apply():
    """With 50 ordinary prompts nothing can be promised at 1%, and it says how many it takes."""
    with pytest.raises(NotApplicable, match="99 ordinary prompts"):
        conformal_threshold([0.0] * 50, false_alarms=0.01)
