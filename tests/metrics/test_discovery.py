"""Adjusted p-values against scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import false_discovery_control

from unmemorize.metrics.discovery import benjamini_hochberg, false_discovery


@pytest.mark.parametrize("left_out", [0, 3, 2000])
def test_equals_scipy_with_the_others_at_one(left_out):
    """Tests that are left out count as p = 1."""
    p = np.random.default_rng(0).random(50) ** 3
    expected = false_discovery_control(np.r_[p, np.ones(left_out)], method="by")[:50]
    assert false_discovery(p, 50 + left_out) == pytest.approx(expected, rel=1e-6)


def test_nothing_to_adjust():
    """No p-values are no adjusted ones; more than there are tests is a mistake."""
    assert len(false_discovery(np.array([]), 10)) == 0
    with pytest.raises(ValueError, match="at most 1"):
        false_discovery(np.array([0.1, 0.2]), 1)


@pytest.mark.parametrize("tied", [False, True])
def test_benjamini_hochberg_equals_scipys(tied):
    """Also where conformal p-values are tied."""
    p = np.random.default_rng(1).random(80) ** 2
    p = np.ceil(p * 20) / 20 if tied else p
    assert benjamini_hochberg(p) == pytest.approx(false_discovery_control(p, method="bh"), rel=1e-12)
