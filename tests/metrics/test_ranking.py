"""Ranking, its uncertainty, and the text-only control."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from unmemorize.core.errors import NotApplicable
from unmemorize.metrics.ranking import (
    auc,
    cluster_bootstrap,
    combined_scores,
    ranked_together,
    rate_interval,
    roc,
    share_interval,
    text_scores,
    tpr_at_fpr,
)

# Few distinct values: ties are where ranking statistics go wrong.
labelled = st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=60).filter(
    lambda rows: len({p for _, p in rows}) == 2
)


def arrays(rows):
    scores, positive = zip(*rows, strict=True)
    return np.array(scores, float), np.array(positive)


@given(labelled)
def test_auc_is_the_share_of_pairs_in_the_right_order(rows):
    """Ties count one half, and it is scikit-learn's number."""
    scores, positive = arrays(rows)
    pairs = [(p > n) + 0.5 * (p == n) for p in scores[positive] for n in scores[~positive]]
    assert auc(scores, positive) == pytest.approx(np.mean(pairs))
    assert auc(scores, positive) == pytest.approx(roc_auc_score(positive, scores))


def test_auc_is_never_flipped():
    """A detector that ranks the wrong way round scores below one half, not above."""
    positive = np.array([True, True, False, False])
    assert auc(np.array([0.0, 1.0, 2.0, 3.0]), positive) == 0
    assert tpr_at_fpr(np.array([0.0, 1.0, 2.0, 3.0]), positive, 0.4) == 0


@given(labelled, st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]))
def test_true_positive_rate_is_the_best_within_the_false_positive_rate(rows, fpr):
    """Over all thresholds whose false positive rate is at most the one allowed, the highest true positive rate."""
    scores, positive = arrays(rows)
    allowed = [
        (scores[positive] >= threshold).mean()
        for threshold in (*scores, np.inf)
        if (scores[~positive] >= threshold).mean() <= fpr
    ]
    assert tpr_at_fpr(scores, positive, fpr) == pytest.approx(max(allowed))


def test_methods_ranked_together_have_their_own_intervals_and_paired_differences():
    """Each method's numbers are those that it has alone; a copy of the best is never behind, a worse one always is."""
    rng = np.random.default_rng(0)
    positive = np.arange(80) % 2 == 0
    clusters = [str(i // 4) for i in range(80)]
    good = positive + rng.normal(0, 0.5, 80)
    scores = np.stack([good, 2 * good + 1, rng.normal(0, 1, 80)], axis=1)
    together = ranked_together(scores, positive, clusters, rounds=200)
    for row, column in zip(together, scores.T, strict=True):
        assert row.auc == cluster_bootstrap(auc, column, positive, clusters, rounds=200)
        assert row.tpr == cluster_bootstrap(tpr_at_fpr, column, positive, clusters, rounds=200)
    assert (together[0].behind.low, together[1].behind.low, together[1].behind.high) == (0, 0, 0)
    assert together[2].behind.value == pytest.approx(together[0].auc.value - together[2].auc.value)

    def difference(both, positive):
        return auc(both[:, 0], positive) - auc(both[:, 1], positive)

    assert together[2].behind == cluster_bootstrap(difference, scores[:, [0, 2]], positive, clusters, rounds=200)


def test_of_too_few_unrelated_prompts_there_is_no_interval():
    positive = np.array([True, False] * 4)
    (row,) = ranked_together(np.arange(8.0)[:, None], positive, ["a", "b"] * 4)
    assert row.auc.value == auc(np.arange(8.0), positive)
    assert np.isnan([row.auc.low, row.tpr.high, row.behind.low]).all()


def test_a_combination_takes_its_weights_from_the_other_half():
    """Two methods that each see half of what there is are better together; of noise nothing is learned."""
    rng = np.random.default_rng(1)
    positive = np.arange(400) % 2 == 0
    clusters = [str(i // 2 * 2) for i in range(400)]
    one, other = rng.normal(positive, 1), rng.normal(-1.0 * positive, 1)
    combined = combined_scores(np.stack([one, 100 * other], axis=1), positive, clusters)
    assert auc(combined, positive) > auc(one, positive) + 0.05
    assert auc(combined, positive) == pytest.approx(auc(one - other, positive), abs=0.01)  # the best there is
    noise = combined_scores(rng.normal(size=(400, 30)), positive, clusters)
    assert abs(auc(noise, positive) - 0.5) < 0.1
    with pytest.raises(NotApplicable, match="unrelated"):
        combined_scores(rng.normal(size=(400, 2)), positive, ["a"] * 400)


def test_the_false_positive_rate_allowed_is_never_exceeded():
    """With 60 negatives one false positive is 1.7%: at 1% none is allowed, although 1.7% is nearer to 1% than 0 is."""
    scores = np.concatenate([[10.0], np.zeros(59), [11.0, 9.0, 9.0, 9.0]])
    positive = np.arange(64) >= 60
    assert tpr_at_fpr(scores, positive, 0.01) == 0.25
    assert tpr_at_fpr(scores, positive, 0.02) == 1.0


@given(labelled)
def test_the_roc_curve_encloses_the_area(rows):
    """The curve runs from (0, 0) to (1, 1), never falls, and its area is the AUC."""
    scores, positive = arrays(rows)
    false, true = roc(scores, positive)
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    assert (np.diff(false) >= 0).all()
    assert (np.diff(true) >= 0).all()
    assert np.trapezoid(true, false) == pytest.approx(auc(scores, positive))


def clustered(seed=0, clusters=24, size=10):
    """Clusters whose members score alike and share a label: the worst case for an interval over rows."""
    rng = np.random.default_rng(seed)
    positive = np.repeat(np.arange(clusters) % 2 == 0, size)
    level = np.repeat(rng.normal(size=clusters), size) + positive * 0.8
    names = [f"family-{i // size}" for i in range(clusters * size)]
    return level + rng.normal(scale=0.01, size=len(level)), positive, names


def test_the_interval_is_wider_where_prompts_are_related():
    """Ten prompts that score as one count as one: resampling rows instead would make the interval far too narrow."""
    scores, positive, names = clustered()
    related_rows = cluster_bootstrap(auc, scores, positive, names, rounds=400)
    rows = cluster_bootstrap(auc, scores, positive, [str(i) for i in range(len(names))], rounds=400)
    assert related_rows.value == rows.value == auc(scores, positive)
    assert related_rows.high - related_rows.low > 2 * (rows.high - rows.low)
    assert related_rows.low <= related_rows.value <= related_rows.high


def test_the_interval_covers_the_truth():
    """Of a hundred data sets with a known difference of means, the 95% interval holds it in nearly all."""

    def difference(scores, positive):
        return float(scores[positive].mean() - scores[~positive].mean())

    hits = 0
    for seed in range(100):
        positive = np.arange(80) < 40
        scores = np.random.default_rng(seed).normal(size=80) + positive
        found = cluster_bootstrap(difference, scores, positive, [str(i) for i in range(80)], rounds=150)
        hits += found.low <= 1 <= found.high
    assert 86 <= hits < 100


def test_the_interval_repeats_with_its_seed():
    """The same data and seed give the same interval; the global random state plays no part."""
    scores, positive, names = clustered()
    first = cluster_bootstrap(auc, scores, positive, names, rounds=50)
    np.random.default_rng()
    assert cluster_bootstrap(auc, scores, positive, names, rounds=50) == first
    assert cluster_bootstrap(auc, scores, positive, names, rounds=50, seed=1) != first


@pytest.mark.parametrize("label", [True, False])
def test_prompts_of_one_kind_cannot_be_ranked(label):
    """With nothing to rank above or below, the interval is *not applicable*."""
    with pytest.raises(NotApplicable, match="unrelated prompts of either kind"):
        cluster_bootstrap(auc, np.arange(4.0), np.full(4, label), list("abcd"))


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.2, 0.5, 0.9])
@pytest.mark.parametrize(("units", "seeds"), [(17, 4), (18, 2), (60, 4)])
def test_rate_interval_covers_the_true_rate(rate, units, seeds):
    """With seeds of a picture that agree in part (beta-binomial, correlation 0.3), 95% or more of intervals hold it."""
    rng = np.random.default_rng(units)
    shape = 1 / 0.3 - 1
    own = rng.beta(rate * shape, (1 - rate) * shape, size=(400, units))
    hits = rng.binomial(seeds, own)
    found = [rate_interval(row, [seeds] * units) for row in hits]
    covered = np.mean([interval.low <= rate <= interval.high for interval in found])
    assert covered >= 0.95 - 2 * (0.95 * 0.05 / 400) ** 0.5


def test_rate_interval_is_the_exact_one_where_a_unit_has_one_trial():
    """Against scipy's Clopper-Pearson interval."""
    for hits in range(18):
        found = rate_interval([1] * hits + [0] * (17 - hits), [1] * 17)
        expected = binomtest(hits, 17).proportion_ci(0.95, method="exact")
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=25), st.data())
def test_one_hit_more_never_lowers_a_limit(hits, data):
    """Seeing one copy more is evidence for a higher rate, wherever it falls."""
    place = data.draw(st.integers(0, len(hits) - 1))
    assume(hits[place] < 4)
    more = [h + (i == place) for i, h in enumerate(hits)]
    before, after = rate_interval(hits, [4] * len(hits)), rate_interval(more, [4] * len(hits))
    assert before.low <= after.low
    assert before.high <= after.high


def test_a_rate_of_none_or_all_still_has_a_width():
    """No copy among 17 units of four seeds says no more than none of 17, and one copy does not shrink the limit."""
    none, one = rate_interval([0] * 17, [4] * 17), rate_interval([1] + [0] * 16, [4] * 17)
    assert (none.value, none.low) == (0, 0)
    assert (1 - none.high) ** 17 == pytest.approx(0.025)
    assert one.high > none.high
    every = rate_interval([4] * 17, [4] * 17)
    assert (every.low, every.high) == (pytest.approx(1 - none.high), 1)


def test_half_of_the_seeds_of_every_picture_is_no_certainty():
    """One copy of two seeds in each of 18 pictures: the bootstrap over pictures had no width there."""
    found = rate_interval([1] * 18, [2] * 18)
    assert found.low < 0.3
    assert found.high > 0.7


def test_share_interval_is_the_rate_of_a_table():
    """Rows are units, columns their trials; a torch table is one too."""
    table = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1]])
    assert share_interval(table) == rate_interval([2, 0, 3], [3, 3, 3])
    assert share_interval(torch.tensor(table).bool()) == share_interval(table)


def test_rate_interval_counts_units_not_trials():
    """More pictures of the same units make the interval no narrower."""
    few = rate_interval([1, 0] * 15, [1] * 30)
    many = rate_interval([100, 0] * 15, [100] * 30)
    assert (few.value, few.low, few.high) == (many.value, many.low, many.high)


def test_rate_interval_counts_related_units_once():
    """Families of six that come out alike: over single prompts an interval holds the rate far too rarely."""
    rng = np.random.default_rng(0)
    clusters = [f"family-{i // 6}" for i in range(120)]
    held = {"families": 0, "prompts": 0}
    for _ in range(200):
        hits = np.repeat(rng.random(20) < 0.2, 6).astype(int).tolist()
        families, prompts = rate_interval(hits, [1] * 120, clusters), rate_interval(hits, [1] * 120)
        assert families.value == prompts.value
        held["families"] += families.low <= 0.2 <= families.high
        held["prompts"] += prompts.low <= 0.2 <= prompts.high
    assert held["families"] >= 190 - 2 * (200 * 0.95 * 0.05) ** 0.5
    assert held["prompts"] < 150


def test_rate_interval_of_clusters_is_that_of_their_sums():
    """Two clusters of two and three units are two units with the sums of hits and trials."""
    found = rate_interval([1, 0, 2, 2, 0], [2, 2, 2, 2, 2], ["a", "a", "b", "b", "b"])
    assert found == rate_interval([1, 4], [4, 6])


def sentences(rng, count, words):
    return [" ".join(rng.choice(words, 4)) for _ in range(count)]


WORDS = [f"{a}{b}" for a in ("ka", "lo", "mi", "nu", "pe") for b in "bcdfghjk"]


def test_the_text_control_finds_what_the_text_gives_away():
    """Where a word marks the memorized prompts, text alone separates them: its AUC is above 0.9."""
    rng = np.random.default_rng(0)
    positive = np.arange(60) % 2 == 0
    prompts = [s + (" print" if p else "") for s, p in zip(sentences(rng, 60, WORDS), positive, strict=True)]
    assert auc(text_scores(prompts, positive, [str(i) for i in range(60)]), positive) > 0.9


def test_the_text_control_finds_nothing_in_random_text():
    """Where labels have nothing to do with the text, its AUC is near one half."""
    rng = np.random.default_rng(1)
    positive = rng.permutation(np.arange(160) < 80)
    found = auc(text_scores(sentences(rng, 160, WORDS), positive, [str(i) for i in range(160)]), positive)
    assert 0.35 < found < 0.65


def test_the_text_control_never_learns_from_a_relative():
    """Prompts of one cluster are never in training and test at once: their shared words give nothing away."""
    rng = np.random.default_rng(2)
    families = [f"{word}{k}" for word in WORDS[:6] for k in range(2)]
    prompts = [f"{family} {w}" for family in families for w in rng.choice(WORDS, 6)]
    clusters = [family for family in families for _ in range(6)]
    positive = np.repeat(rng.permutation(np.arange(12) < 6), 6)
    apart = auc(text_scores(prompts, positive, clusters), positive)
    leaked = auc(text_scores(prompts, positive, [str(i) for i in range(72)]), positive)
    assert leaked > 0.95
    assert apart < 0.7


@pytest.mark.parametrize("count", [0, 4])
def test_the_text_control_needs_enough_unrelated_prompts(count):
    """Fewer than five clusters of a kind are *not applicable*, however many prompts they hold."""
    positive = np.array([True] * 40 + [False] * 40)
    clusters = [f"p{i % max(count, 1)}" for i in range(40)] + [f"n{i}" for i in range(40)]
    with pytest.raises(NotApplicable, match="5 unrelated prompts of either kind"):
        text_scores(["a b"] * 80, positive if count else np.zeros(80, bool), clusters)
