"""ReTrack: its loss against the formula written out, value by value, on closed-form models and on a network."""

from __future__ import annotations

import math

import pytest
import torch

from unmemorize.core.results import Pairs, Surrogates
from unmemorize.models.load import wrap
from unmemorize.unlearn.denoising import denoising_errors, draw_noise, draw_rows
from unmemorize.unlearn.loop import Team
from unmemorize.unlearn.retrack import Retrack, Retracking, nearest_kept, retracked_error
from unmemorize.unlearn.surrogates import draw_surrogates

TEAM = Team()


def literal(prediction, neighbours):
    """The loss of one row in ε and float64, with plain exponentials where there is little noise in few values."""
    alpha, sigma = prediction.alpha.item(), prediction.sigma.item()
    x, eps = prediction.x.flatten().tolist(), prediction.eps.flatten().tolist()
    v = [[(a - alpha * b) / sigma for a, b in zip(x, n.flatten().tolist(), strict=True)] for n in neighbours]
    d = [sum(c * c for c in row) / 2 for row in v]
    e = [math.exp(min(d) - value) for value in d]
    loss = 0.0
    for weight, row in zip(e, v, strict=True):
        loss += weight / sum(e) * sum((a - b) ** 2 for a, b in zip(eps, row, strict=True)) / len(x)
    return min(1.0, (sigma / alpha) ** 2) * loss


@pytest.mark.parametrize("u", [0.2, 0.55, 0.9])
@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction", "flow"])
def test_the_error_is_the_formula_s(make_oracle, kind, u):
    """In the trained output, which differs from ε by a known factor at each level."""
    oracle = make_oracle(kind)
    images = oracle.denoiser.images
    t = oracle.timestep(torch.tensor([u]))
    noise = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    prediction = oracle.predict(oracle.add_noise(images[:1], noise, t), t, oracle.encode(["all"]))
    alpha, sigma = prediction.alpha.item(), prediction.sigma.item()
    factor = {"epsilon": 1.0, "sample": alpha / sigma, "v_prediction": alpha, "flow": alpha}[kind]
    neighbours = images[0] + 0.1 * (images[1:5] - images[0])
    expected = literal(prediction, neighbours) / factor**2
    assert retracked_error(prediction, neighbours).item() == pytest.approx(expected, rel=1e-4)


def test_it_is_finite_at_the_size_of_stable_diffusion_s_latents(make_oracle):
    """Exponents of 10⁴ and more; one neighbour has all the weight. And at the lowest noise it is bounded."""
    oracle = make_oracle("epsilon")
    generator = torch.Generator().manual_seed(0)
    x0, other = torch.randn(1, 4, 64, 64, generator=generator), torch.randn(2, 4, 64, 64, generator=generator)
    for t in (0, 10, 999):
        t = torch.tensor([t])
        x = oracle.add_noise(x0, torch.randn(x0.shape, generator=generator), t)
        said = oracle.interpret(x, x, t)
        error = retracked_error(said, other)
        assert error.isfinite()
        assert error < 10


def test_neighbours_are_the_nearest_of_the_picture_s_own():
    """By L2, never another picture's."""
    kept = Surrogates(torch.tensor([5.0, 1.0, 3.0, 0.0, 9.0]).reshape(5, 1, 1, 1), torch.tensor([0, 0, 0, 1, 1]))
    found = nearest_kept(torch.tensor([0.0, 8.0]).reshape(2, 1, 1, 1), kept, 2)
    assert [rows.flatten().tolist() for rows in found] == [[1.0, 3.0], [9.0, 0.0]]


def test_an_update_is_the_gradient_of_both_losses(make_pipe):
    """λ of the first and 1 − λ of the second, each written out; two evaluations a row."""
    model = wrap(make_pipe())
    generator = torch.Generator().manual_seed(0)
    latents, captions = torch.randn(2, 4, 8, 8, generator=generator), model.encode(["one", "two"])
    kept = Surrogates(torch.randn(6, 4, 8, 8, generator=generator), torch.tensor([0, 0, 0, 1, 1, 1]))
    objective = Retracking(Pairs(latents, captions), kept, neighbours=2, lam=0.3, batch=4)
    with model.counted() as cost:
        shown = objective.backward(model, 3, TEAM)
    assert cost.forward == cost.backward == 8
    parameter = model.denoiser.conv_in.weight
    rows = draw_rows(2, 4, slice(0, 4), update=3, name=(0, 1))
    noise = draw_noise(latents, rows)
    t = model.timestep(noise.u)
    near = nearest_kept(latents, kept, 2)
    forget = torch.zeros(())
    for row, item in enumerate(rows.items.tolist()):
        x = model.add_noise(latents[item][None], noise.eps[row : row + 1], t[row : row + 1])
        said = model.predict(x, t[row : row + 1], captions[[item]])
        forget = forget + retracked_error(said, near[item]) / 4
        if row == 0:
            assert retracked_error(said, near[item]).item() == pytest.approx(literal(said, near[item]), rel=1e-4)
    other = draw_surrogates(kept, rows)
    keep = denoising_errors(model, other, captions[rows.items], draw_noise(other, rows)).mean()
    assert shown["forget"].item() == pytest.approx(forget.item(), rel=1e-4)
    assert shown["keep"].item() == pytest.approx(keep.item(), rel=1e-4)
    (expected,) = torch.autograd.grad(0.3 * forget + 0.7 * keep, parameter)
    assert torch.allclose(parameter.grad, expected, atol=1e-5)


@pytest.mark.parametrize("settings", [{"lam": 1.5}, {"neighbours": 0}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match="has to"):
        Retrack(**settings)
