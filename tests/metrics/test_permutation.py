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


def near(rng, names, known):
    """Distances of generated pictures to pictures, small for those of the group that each was made from."""
    return rng.random((len(known), len(names))) + np.where(np.asarray(known)[:, None] == names, 0, 2)


@pytest.mark.parametrize("copies", [1, 5, 20])
@pytest.mark.parametrize("exact", [True, False])
def test_one_picture_however_often_has_no_p_below_one_half(copies, exact):
    """Ten pictures a set, each there so many times; all generations are of one, of the training set."""
    rng = np.random.default_rng(copies)
    names = np.repeat(np.arange(20), copies)
    distances = np.where(np.arange(20) == 3, 1, 9)[names] * np.ones((40, 1)) if exact else near(rng, names, [3] * 40)
    split = 10 * copies
    found = nearness_test(distances[:, :split], distances[:, split:], paired=False, groups=names)
    assert found.nearer == pytest.approx(40)
    assert found.p_value == pytest.approx(0.5, abs=0.05)


def test_variants_of_one_layout_have_no_p_below_one_half_beside_their_mirror_images():
    """Twenty variants among thirty pictures; generations are of the layout, each nearest to another variant."""
    rng = np.random.default_rng(0)
    layout = np.minimum(np.arange(60) % 30, 10) + 100 * (np.arange(60) // 30)
    distances = near(rng, layout, [10] * 40)
    found = nearness_test(distances[:, :30], distances[:, 30:], paired=True, groups=layout)
    assert found.nearer == 40
    assert found.p_value == pytest.approx(0.5, abs=0.05)


def test_a_picture_and_its_mirror_image_in_the_training_set_say_nothing():
    """Each is the other's held-out partner, so exchanging both changes nothing."""
    groups = np.array([0, 1, 2, 3, 1, 0, 4, 5])
    distances = near(np.random.default_rng(0), groups, [0] * 20 + [1] * 20)
    found = nearness_test(distances[:, :4], distances[:, 4:], paired=True, groups=groups)
    assert found.nearer == pytest.approx(20, abs=12)
    assert found.p_value > 0.3


def test_a_group_of_both_sets_counts_half():
    """What duplicates a training picture was not held out; what is left are one finding on either side."""
    groups = np.array([0, 1, 2, 0, 3, 4])
    distances = near(np.random.default_rng(0), groups, [0] * 10 + [1] * 2 + [3])
    found = nearness_test(distances[:, :3], distances[:, 3:], paired=False, groups=groups)
    assert found.nearer == 10 / 2 + 2
    # Of the other two pictures of either set, two are drawn: both hits, the larger alone, or less than was seen.
    assert found.p_value == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("paired", [True, False])
def test_under_chance_p_is_not_small_too_often_where_pictures_are_duplicated(paired):
    """Groups of one to six variants, named at random; the generator knows twelve of them, whatever their names."""
    rng = np.random.default_rng(1)
    small = 0
    for run in range(300):
        sizes = rng.integers(1, 7, 40)
        if paired:
            training = np.repeat(np.arange(40), sizes)
            names = np.concatenate([training, training + 40])
            known = np.where(rng.random(12) < 0.5, 0, 40) + rng.choice(40, 12, replace=False)
        else:
            names = np.repeat(np.arange(40), sizes)
            known = rng.choice(40, 12, replace=False)
            order = np.argsort(rng.random(40)[names], kind="stable")
            names = names[order]
        split = len(names) // 2 if paired else int(sizes[list(dict.fromkeys(names))][:20].sum())
        distances = near(rng, names, rng.choice(known, 60))
        found = nearness_test(
            distances[:, :split], distances[:, split:], paired=paired, groups=names, rounds=199, seed=run
        )
        small += found.p_value <= 0.05
    assert small <= binom.ppf(0.999, 300, 0.05)


def test_there_is_one_group_number_per_picture():
    with pytest.raises(ValueError, match="expected 4 group numbers"):
        nearness_test(np.zeros((2, 2)), np.zeros((2, 2)), paired=True, groups=np.zeros(2, int))


def test_a_picture_that_is_its_own_mirror_image_says_nothing():
    """Equal distances count half and stay equal under every exchange."""
    distances = np.random.default_rng(0).random((8, 5))
    found = nearness_test(distances, distances, paired=True)
    assert (found.nearer, found.p_value) == (4, 1)


def test_pairs_have_to_match():
    with pytest.raises(ValueError, match="pairs of columns"):
        nearness_test(np.zeros((2, 3)), np.zeros((2, 4)), paired=True)
