"""Adjusted p-values against scipy's."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
from scipy.stats import false_discovery_control, hypergeom

from unmemorize.metrics.discovery import benjamini_hochberg, false_discovery, hypergeometric_tail


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


def test_hypergeometric_tail_equals_scipys_everywhere():
    """Every number of times, also impossible and certain ones, below the mean and above it."""
    times, total, size = np.meshgrid(range(14), (1, 2, 7, 12, 30), (1, 2, 5, 12, 30), indexing="ij")
    expected = hypergeom.sf(times - 1, 30, total, size)
    assert hypergeometric_tail(times, total, size, 30) == pytest.approx(expected, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("case", [(2, 5, 12, 600_000), (3, 3, 30, 12_000_000), (100, 60_000, 300, 600_000)])
def test_hypergeometric_tail_of_millions_counts_subsets(case):
    """Exactly, with whole numbers."""
    times, total, size, said = case
    ways = sum(comb(total, j) * comb(said - total, size - j) for j in range(times, min(total, size) + 1))
    (tail,) = hypergeometric_tail([times], [total], [size], said)
    assert tail == pytest.approx(float(ways / comb(said, size)) if ways else 0, rel=1e-6)


def test_hypergeometric_tail_far_below_the_mean_is_one():
    """Of 3,000 words, a third are marked: eleven are certain, though the first terms are too small for a float."""
    assert hypergeometric_tail([11], [300_000], [3_000], 900_000) == pytest.approx(1.0)
