"""The dose-response curve between its measured points."""

from __future__ import annotations

import pytest

from unmemorize.core.results import Interval
from unmemorize.metrics.dose import Dose, predicted_risk
from unmemorize.testbed.dose import dose_curve

CURVE = (Dose(1, Interval(0.0, 0.0, 0.2)), Dose(10, Interval(0.5, 0.3, 0.8)), Dose(1000, Interval(1.0, 0.9, 1.0)))


@pytest.mark.parametrize(("copies", "rate"), [(1, 0.0), (10, 0.5), (100, 0.75), (1000, 1.0), (50_000, 1.0), (0, 0.0)])
def test_linear_in_log_copies_and_constant_beyond(copies, rate):
    """A hundred is half-way between ten and a thousand."""
    assert predicted_risk(CURVE, copies).value == pytest.approx(rate)


def test_the_interval_is_interpolated_too():
    """Both ends move as the rate does."""
    risk = predicted_risk(CURVE, 100)
    assert (risk.low, risk.high) == (pytest.approx(0.6), pytest.approx(0.9))


def test_the_shipped_curve_is_in_order():
    """The file that `make results` writes holds a point for every rung of the ladder."""
    from unmemorize.testbed.plan import LADDER

    assert [dose.copies for dose in dose_curve()] == sorted(LADDER)
    assert all(dose.rate.low <= dose.rate.value <= dose.rate.high for dose in dose_curve())
