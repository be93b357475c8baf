"""Exact tests of counts, against scipy's own and closed forms."""

from __future__ import annotations

import math

import pytest
from scipy.stats import binomtest, fisher_exact

from unmemorize.metrics.exact import above, interval, more_often, units_to_decide


@pytest.mark.parametrize("counts", [(0, 6, 0, 6), (4, 6, 0, 12), (5, 6, 3, 6), (1, 3, 9, 9), (7, 7, 0, 1)])
def test_tests_of_counts_are_scipys(counts):
    """Fisher's exact test, one-sided, and the binomial test."""
    hits, units, other_hits, others = counts
    table = [[hits, units - hits], [other_hits, others - other_hits]]
    assert more_often(*counts) == pytest.approx(fisher_exact(table, alternative="greater").pvalue)
    assert above(hits, units, 0.1) == pytest.approx(binomtest(hits, units, 0.1, alternative="greater").pvalue)


@pytest.mark.parametrize("bound", [0.01, 0.05, 0.1, 0.3, 0.5])
def test_units_without_a_hit_that_decide_a_bound(bound):
    """(1 - bound)^n falls to 2.5% at that many, and not at one fewer; 36 for 10%."""
    assert units_to_decide(bound) == math.ceil(math.log(0.025) / math.log(1 - bound))
    assert units_to_decide(0.1) == 36


def test_units_that_decide_a_rate_above_zero():
    """The interval ends within the bound there and not one unit earlier; a rate at the bound is never decided."""
    needed = units_to_decide(0.1, 0.05)
    assert interval(0.05, needed).high <= 0.1 < interval(0.05, needed - 1).high
    assert units_to_decide(0.1, 0.1) is None
    assert units_to_decide(1e-5) is None
