"""Thresholds: exact in finite samples."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy.stats import binomtest

from unmemorize.core.errors import NotApplicable
from unmemorize.metrics.calibrate import check_calibration, conformal_p_values, conformal_threshold, set_p_value
from unmemorize.metrics.discovery import benjamini_hochberg


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


def test_p_values_by_hand():
    """Above all of four, as high as the second, below all."""
    assert conformal_p_values([9, 3, 0], [4, 3, 2, 1]) == pytest.approx([1 / 5, 3 / 5, 1])


def test_p_value_and_threshold_agree():
    """A score is above the threshold for α exactly if its p-value is at most α."""
    rng = np.random.default_rng(0)
    ordinary, scores = rng.normal(size=99), rng.normal(size=500)
    flagged = conformal_p_values(scores, ordinary) <= 0.05
    assert np.array_equal(flagged, scores > conformal_threshold(ordinary, false_alarms=0.05))


def test_a_set_is_ranked_as_the_permutations_of_its_members_rank_it():
    """All ways to draw three of seven scores, by hand; and of sets from one source as many fall below p as p says."""
    scores, ordinary = [5.0, 7.0, 9.0], [1.0, 2.0, 6.0, 8.0]
    every = [*scores, *ordinary]
    sums = [sum(sorted(every).index(value) for value in chosen) for chosen in combinations(every, 3)]
    own = sum(sorted(every).index(value) for value in scores)
    assert set_p_value(scores, ordinary) == pytest.approx(np.mean(np.array(sums) >= own))
    rng = np.random.default_rng(3)
    drawn = [set_p_value(rng.normal(size=70), rng.normal(size=90)) for _ in range(400)]
    assert binomtest(sum(p <= 0.05 for p in drawn), 400, 0.05).pvalue > 0.01
    shifted = [set_p_value(rng.normal(0.5, 1, 70), rng.normal(size=90)) for _ in range(50)]
    assert np.mean(np.array(shifted) <= 0.05) > 0.8  # each picture alone says little: its AUC is 0.64


def test_false_discoveries_are_controlled():
    """Over many lists of 80 ordinary and 20 raised scores, at most 5% of what is picked is ordinary, on average."""
    rng = np.random.default_rng(0)
    shares, powers = [], []
    for _ in range(300):
        scores = np.r_[rng.normal(size=80), rng.normal(4, size=20)]
        picked = benjamini_hochberg(conformal_p_values(scores, rng.normal(size=400))) <= 0.05
        shares.append(picked[:80].sum() / max(picked.sum(), 1))
        powers.append(picked[80:].mean())
    assert np.mean(shares) <= 0.05
    assert np.mean(powers) > 0.5


def test_the_check_sees_what_calibration_promised():
    """Alarms are near the level, hardly any discovery is ordinary, and a drawn-out tail of one cluster is seen."""
    rng = np.random.default_rng(0)
    ordinary, clusters = rng.normal(size=400), [str(i // 2) for i in range(400)]
    check = check_calibration(rng.normal(6, size=60), ordinary, clusters)
    assert check.alarms.low <= 0.05 <= check.alarms.high
    assert check.discoveries >= 600
    assert check.false / check.discoveries <= 0.05
    apart = np.where(np.arange(400) < 100, 9.0, ordinary)  # a quarter are one cluster that scores high
    assert check_calibration([], apart, ["one"] * 100 + clusters[100:]).alarms.value > 0.2
