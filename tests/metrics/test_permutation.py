"""The permutation test against scipy's, against a closed form, and under chance."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, permutation_test

from unmemorize.metrics.permutation import nearness_test


def nearer(distances, training, held):
    inside, outside = distances[:, training].min(1), distances[:, held].min(1)
    return (inside < outside).sum() + 0.5 * (inside == outside).sum()


@pytest.mark.parametrize(("paired", "kind"), [(True, "samples"), (False, "independent")])
def test_equals_scipys_over_all_exchanges(paired, kind):
    """scipy exchanges the columns' numbers exhaustively, and the statistic looks the distances up by number."""
    rng = np.random.default_rng(3)
    training, held = rng.random((9, 6)) - 0.2, rng.random((9, 6 if paired else 5))
    both = np.hstack([training, held])
    names = np.arange(6), np.arange(6, both.shape[1])
    exact = permutation_test(
        names,
        lambda a, b: nearer(both, a, b),
        permutation_type=kind,
        vectorized=False,
        n_resamples=np.inf,
        alternative="greater",
    )
    found = nearness_test(training, held, paired=paired, rounds=4000)
    assert found.nearer == exact.statistic
    assert found.p_value == pytest.approx(exact.pvalue, abs=0.03)


def test_of_one_copy_each_it_is_the_sign_test():
    """Twelve generations, each of another picture's or its partner's: p is the binomial tail."""
    distances = np.full((12, 24), 9.0)
    distances[np.arange(12), np.arange(12)] = 1
    distances[[0, 1, 2], [12, 13, 14]] = 0.5  # these three are nearer to the held-out partner
    found = nearness_test(distances[:, :12], distances[:, 12:], paired=True, rounds=20_000)
    assert (found.images, found.nearer) == (12, 9)
    assert found.p_value == pytest.approx(binom.sf(8, 12, 0.5), abs=0.01)


def test_a_hundred_generations_of_one_picture_are_one_finding():
    """They all go by one name, so chance does as well half of the time."""
    distances = np.full((100, 10), 9.0)
    distances[:, 2] = 1
    found = nearness_test(distances[:, :5], distances[:, 5:], paired=True)
    assert found.nearer == 100
    assert found.p_value == pytest.approx(0.5, abs=0.05)


def test_under_chance_p_is_not_small_too_often():
    """Pictures that neither set was trained on: p ≤ 5% in about 5% of the draws."""
    rng = np.random.default_rng(0)
    p = [
        nearness_test(rng.random((30, 40)), rng.random((30, 40)), paired=False, rounds=199, seed=i).p_value
        for i in range(400)
    ]
    assert 0.02 < np.mean(np.array(p) <= 0.05) < 0.09


def test_a_picture_that_is_its_own_mirror_image_says_nothing():
    """Equal distances count half and stay equal under every exchange."""
    distances = np.random.default_rng(0).random((8, 5))
    found = nearness_test(distances, distances, paired=True)
    assert (found.nearer, found.p_value) == (4, 1)


def test_pairs_have_to_match():
    with pytest.raises(ValueError, match="pairs of columns"):
        nearness_test(np.zeros((2, 3)), np.zeros((2, 4)), paired=True)
