"""KID and FID against torchmetrics' formulas and closed forms; the bootstrap against what it has to cover."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unmemorize.metrics.quality import compare, fid, kid, mean_of


def draw(n, d=6, shift=0.0, seed=0):
    return np.random.default_rng(seed).normal(shift, 1.0, (n, d))


def ones(*sets):
    return [np.ones(len(s)) for s in sets]


def test_kid_is_torchmetrics():
    """Its unbiased estimate with the standard kernel, on one subset that is the whole set."""
    from torchmetrics.image.kid import poly_mmd

    x, y = draw(40), draw(40, shift=0.3, seed=1)
    assert kid(x, y)(*ones(x, y)) == pytest.approx(poly_mmd(torch.tensor(x), torch.tensor(y)).item(), rel=1e-9)


def test_kid_of_one_distribution_is_zero_on_average():
    """Unbiased: over many small samples the mean is within its standard error of zero, and some are negative."""
    values = []
    for s in range(300):
        x, y = draw(15, seed=2 * s), draw(25, seed=2 * s + 1)
        values.append(kid(x, y)(*ones(x, y)))
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(300)
    assert min(values) < 0 < max(values)


def test_fid_is_torchmetrics_and_the_closed_form():
    """Against torchmetrics on random covariances, and Σ(σ − σ')² + ‖μ − μ'‖² on scaled copies of one sample."""
    from torchmetrics.image.fid import _compute_fid

    x, y = draw(60) @ draw(6, seed=3), draw(80, shift=0.5, seed=1)
    moments = [torch.tensor(m) for s in (x, y) for m in (s.mean(0), np.cov(s.T))]
    assert fid(x, y)(*ones(x, y)) == pytest.approx(_compute_fid(*moments).item(), rel=1e-6)
    scale, shift = np.linspace(0.5, 2.0, 6), np.arange(6.0)
    white = (x - x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T
    expected = np.square(scale - 1).sum() + np.square(shift).sum()
    assert fid(white * scale + shift, white)(*ones(x, x)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("measure", [kid, fid])
def test_a_weight_of_two_is_a_picture_twice(measure):
    """Of all but its comparison with itself, which KID leaves out."""
    x, y = draw(20), draw(30, shift=0.4, seed=1)
    w = np.ones(20)
    w[3] = 2
    twice = np.concatenate([x, x[3:4]])
    if measure is fid:
        assert measure(x, y)(w, np.ones(30)) == pytest.approx(measure(twice, y)(*ones(twice, y)), rel=1e-9)
        return
    k = lambda a, b: (a @ b.T / 6 + 1) ** 3  # noqa: E731
    inner, pairs = 0.0, 0
    origin = [*range(20), 3]
    for i in range(21):
        for j in range(21):
            if origin[i] != origin[j]:
                inner, pairs = inner + k(twice[i], twice[j]), pairs + 1
    real = k(y, y)
    expected = inner / pairs + (real.sum() - np.trace(real)) / (30 * 29) - 2 * k(twice, y).mean()
    assert measure(x, y)(w, np.ones(30)) == pytest.approx(expected, rel=1e-9)


def test_a_paired_change_is_far_narrower_than_either_value():
    """The same pictures, all a little further off: both values are uncertain, their ratio hardly."""
    x, y = draw(60, shift=0.5), draw(60, seed=1)
    found = compare(fid(x, y), fid(x + 0.001, y), [str(i) for i in range(60)], 60, rounds=100)
    assert found.before.low < found.before.value * 1.2
    assert found.change.low <= found.change.value <= found.change.high
    assert found.change.high - found.change.low < 0.02
    assert found.before.high - found.before.low > 0.1 * found.before.value


def test_related_prompts_are_resampled_together():
    """Four pictures of each of ten prompts, all alike: the interval is that of ten values, not of forty."""
    values = np.repeat(np.arange(10.0), 4)
    clusters = [str(int(v)) for v in values]
    wide = compare(mean_of(values), mean_of(values), clusters, 1).before
    narrow = compare(mean_of(values), mean_of(values), [str(i) for i in range(40)], 1).before
    assert wide.value == narrow.value == 4.5
    assert wide.high - wide.low == pytest.approx(2 * 1.96 * np.std(np.arange(10)) / np.sqrt(10), rel=0.15)
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(2.0, rel=0.15)


def test_no_change_is_no_change():
    """The same measure twice: a ratio of one in every sample."""
    x, y = draw(20), draw(20, seed=1)
    found = compare(kid(x, y), kid(x, y), [str(i) for i in range(20)], 20, rounds=50)
    assert (found.change.value, found.change.low, found.change.high) == (0.0, 0.0, 0.0)


def test_draws_of_one_picture_alone_do_not_count():
    """Of three pictures, one in nine bootstrap samples holds one alone and has no distance within."""
    x, y = draw(3), draw(3, seed=1)
    found = compare(kid(x, y), kid(x, y), ["0", "1", "2"], 3, rounds=50)
    assert np.isfinite([found.before.low, found.before.high]).all()
