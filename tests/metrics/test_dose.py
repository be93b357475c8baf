"""The dose-response curve: never falling, and its limits from exact ones."""

from __future__ import annotations

from itertools import pairwise
from math import log

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.isotonic import IsotonicRegression

from unmemorize.metrics.dose import Dose, predicted_risk
from unmemorize.testbed.dose import dose_curve

CURVE = (Dose(1, 0.0, 20), Dose(10, 0.5, 20), Dose(1000, 1.0, 20))
COPIES = (0, 1, 2, 5, 10, 20, 30, 60, 72, 100, 200, 300, 500, 1000, 50_000)


@pytest.mark.parametrize(("copies", "rate"), [(1, 0.0), (10, 0.5), (100, 0.75), (1000, 1.0), (50_000, 1.0), (0, 0.0)])
def test_linear_in_log_copies_and_constant_beyond(copies, rate):
    """A hundred is half-way between ten and a thousand."""
    assert predicted_risk(CURVE, copies).value == pytest.approx(rate)


def test_limits_are_the_exact_ones_on_either_side():
    """At a measured number its own; between two, the lower one's lower and the higher one's upper limit."""
    half = binomtest(10, 20).proportion_ci()
    none = binomtest(0, 20).proportion_ci()
    assert predicted_risk(CURVE, 10).low == pytest.approx(half.low)
    assert predicted_risk(CURVE, 10).high == pytest.approx(half.high)
    between = predicted_risk(CURVE, 4)
    assert (between.low, between.high) == (pytest.approx(none.low), pytest.approx(half.high))
    assert predicted_risk(CURVE, 50_000).high == 1.0


def test_the_shipped_rates_are_the_isotonic_fit():
    """Those of scikit-learn, weighted by pictures, where copies were measured."""
    curve = dose_curve()
    x, y, pictures = ([getattr(d, name) for d in curve] for name in ("copies", "rate", "pictures"))
    fit = IsotonicRegression().fit(np.log(x), y, pictures)
    for copies in COPIES[1:]:
        expected = np.interp(log(copies), np.log(x), fit.predict(np.log(x)))
        assert predicted_risk(curve, copies).value == pytest.approx(expected)


def test_more_copies_never_predict_less():
    """Neither the shipped curve's rate nor a limit falls; 300 copies are no safer than 100."""
    risks = [predicted_risk(dose_curve(), copies) for copies in COPIES]
    for fewer, more in pairwise(risks):
        assert fewer.value <= more.value
        assert fewer.low <= more.low
        assert fewer.high <= more.high
        assert fewer.low <= fewer.value <= fewer.high
    assert predicted_risk(dose_curve(), 300).value >= predicted_risk(dose_curve(), 100).value > 0.8


def test_intervals_hold_a_rising_rate():
    """Of 300 drawn curves, 95% hold the true rate at measured numbers and between them, but for chance."""
    rng = np.random.default_rng(0)
    pictures = {1: 12, 3: 12, 10: 12, 30: 12, 100: 12, 300: 4, 1000: 2}

    def truth(copies: int) -> float:
        return 1 / (1 + 50 / copies)

    for at in (10, 30, 60, 100, 1000):
        held = 0
        for _ in range(300):
            curve = [Dose(c, rng.binomial(n, truth(c)) / n, n) for c, n in pictures.items()]
            risk = predicted_risk(curve, at)
            held += risk.low <= truth(at) <= risk.high
        assert held / 300 >= 0.95 - 2 * (0.95 * 0.05 / 300) ** 0.5


def test_the_shipped_curve_is_in_order():
    """It begins at one copy, and each of its points has enough pictures to say something."""
    curve = dose_curve()
    assert curve[0].copies == 1
    assert all(fewer.copies < more.copies for fewer, more in pairwise(curve))
    assert all(0 <= dose.rate <= 1 and dose.pictures >= 48 for dose in curve)
