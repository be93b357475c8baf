"""What copies mean beside the control."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta

from unmemorize.core.records import Interval
from unmemorize.metrics.budget import extracted, rates, search_budget, work_to_extract


def curve(*values):
    return [Interval(v, v, v) for v in values]


@pytest.mark.parametrize(
    ("first", "second", "budget"),
    [
        ((0, 0, 0.05), (0, 0, 0), 25),  # at the bound is still within
        ((0, 0.06, 0), (0, 0, 0), 0),  # what comes after a step beyond it does not count
        ((0, 0, 0.1), (0, 0.1, 0), 0),  # the worse control decides
        ((0.1, 0, 0), (0, 0, 0), None),
    ],
)
def test_the_budget_ends_where_a_control_is_copied(first, second, budget):
    assert search_budget([0, 10, 25], [curve(*first), curve(*second)], 0.05) == budget


def test_rates_are_over_pictures_restarts_and_seeds():
    """Two pictures, one restart, two steps, two seeds: no copy at first, then three of four."""
    copied = np.array([[[[0, 0], [1, 1]]], [[[0, 0], [0, 1]]]], dtype=bool)
    first, last = rates(copied)
    assert first.value == 0
    assert first.high == pytest.approx(1 - 0.025**0.5)
    assert last.value == 0.75
    assert (last.low, last.high) == (beta.ppf(0.025, 1.5, 1.5), beta.ppf(0.975, 2.5, 0.5))


def test_a_picture_is_extracted_from_its_first_copy_on():
    """Three pictures: a copy after the first step only, from the second restart on the last one, and none."""
    copied = np.zeros((3, 2, 3, 2), dtype=bool)
    copied[0, 0, 1, 1] = copied[1, 1, 2, 0] = True
    shares = extracted(copied)
    assert [share.value for share in shares] == [0, pytest.approx(1 / 3), pytest.approx(2 / 3)]
    assert shares[0].high == pytest.approx(1 - 0.025 ** (1 / 3))


def test_a_control_that_comes_back_as_often_leaves_no_budget():
    """Four of 80 generations at each of five steps, of other pictures each time: a rate of 0.05, and all are back."""
    copied = np.zeros((20, 1, 5, 4), dtype=bool)
    for step in range(5):
        copied[4 * step : 4 * step + 4, 0, step, 0] = True
    assert [rate.value for rate in rates(copied)] == [0.05] * 5
    assert [share.value for share in extracted(copied)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1])
    assert search_budget([0, 1, 10, 25, 50], [extracted(copied)] * 2, 0.05) is None


def test_work_is_the_median_over_restarts_and_infinite_in_vain():
    """First copies at 10, 25 and never give 25; in vain for most restarts is never; a copy at the start is free."""
    steps = [0.0, 80.0, 200.0]
    found = np.zeros((3, 3, 3, 2), dtype=bool)
    found[0, 0, 1:, 0] = found[0, 1, 2, 1] = True
    found[1, 2, 1, 0] = True
    found[2, :, 0] = True
    assert work_to_extract(found, steps).tolist() == [200.0, np.inf, 0.0]
