"""Initial noise that is adjusted: each rule against its closed form on Gaussians, where Δε is affine in the noise."""

from __future__ import annotations

import math

import pytest
import torch

from unmemorize.core.errors import UserError
from unmemorize.core.methods import Subject, parse
from unmemorize.core.sample import Sampler, generators
from unmemorize.mitigate.initial_noise import descend, difference, norms
from unmemorize.mitigate.sail import SailSampler, sail_loss

STEPS, T, SEEDS = 10, 981, [4, 5, 6]


def started(model, mitigation, seeds=SEEDS, prompts=None):
    """The noise that a mitigation starts from, and what it was."""
    noise = model.noise(generators(seeds))
    with parse("mitigation", mitigation).applied(Subject(model, Sampler(STEPS, 7.5))) as changed:
        cond = model.encode(prompts or ["any"] * len(seeds))
        kept, moved = changed.sampler.fresh().start(model, cond, noise, seeds)
    assert torch.equal(kept.embeds, cond.embeds)
    return noise, moved


def test_what_a_prompt_adds_is_the_closed_form(normals):
    model = normals()
    slope, constant = model.affine(T)
    noise = model.noise(generators(SEEDS))
    assert torch.allclose(difference(model, model.encode(["any"] * 3), noise, STEPS), slope * noise + constant)


@pytest.mark.parametrize("rounds", [1, 2])
def test_batch_wise_noise_is_its_formula(normals, rounds):
    """x ← x − γ A δ with δ = ρ √D Δ / ‖Δ‖, A the slope: at 16,384 values ρ √D is the paper's 50."""
    model = normals()
    slope, constant = model.affine(T)
    x, moved = started(model, f"batch-wise-noise:rounds={rounds},gamma=0.5")
    for _ in range(rounds):
        d = slope * x + constant
        x = x - 0.5 * slope * (50 / 128 * math.sqrt(192)) * d / norms(d)[:, None, None, None]
    assert torch.allclose(moved, x)
    assert parse("mitigation", "batch-wise-noise").rho * math.sqrt(4 * 64 * 64) == 50


def test_batch_wise_noise_lowers_the_magnitude(normals):
    model = normals()
    before, after = (
        norms(difference(model, model.encode(["any"] * 3), x, STEPS)) for x in started(model, "batch-wise-noise")
    )
    assert (after < before).all()


def test_a_first_update_of_per_sample_noise_is_adam_s(normals):
    """lr · g / (|g| + 10⁻⁸) with the gradient g = A (A x + b) / ‖A x + b‖, after the decay: closed form."""
    model = normals()
    slope, constant = model.affine(T)
    x, moved = started(model, "per-sample-noise:target=0,iterations=1")
    d = slope * x + constant
    gradient = slope * d / norms(d)[:, None, None, None]
    assert torch.allclose(moved, x * (1 - 0.01 * 0.01) - 0.01 * gradient / (gradient.abs() + 1e-8))


def test_per_sample_noise_stops_at_its_target_picture_by_picture(normals):
    """A picture under the target keeps its noise bit for bit; the others go no further than they have to."""
    model = normals()
    cond = model.encode(["any"] * 3)
    x = model.noise(generators(SEEDS))
    values = norms(difference(model, cond, x, STEPS)).sort().values
    target = values[0].item() + 1e-9
    x, moved = started(model, f"per-sample-noise:target={target!r}")
    after = norms(difference(model, cond, moved, STEPS))
    assert (after <= target).all()
    assert (after > 0.9 * target).all()
    assert [torch.equal(a, b) for a, b in zip(x, moved, strict=True)].count(True) == 1


def test_sail_s_loss_is_its_formula(normals):
    """‖A (x − u) + b‖ + α (‖x‖ − √D), u the direction of A x + b; its gradient against finite differences."""
    model = normals()
    slope, constant = model.affine(T)
    cond, x = model.encode(["any"] * 2), model.noise(generators([0, 1])).requires_grad_()
    d = slope * x + constant
    ahead = slope * (x - d / norms(d)[:, None, None, None]) + constant
    loss = sail_loss(model, cond, x, STEPS, 0.05)
    assert torch.allclose(loss, norms(ahead) + 0.05 * (norms(x) - math.sqrt(192)))
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    way = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=x.dtype)
    with torch.no_grad():
        up, down = (sail_loss(model, cond, x + h * way, STEPS, 0.05) for h in (1e-5, -1e-5))
    assert torch.allclose((gradient * way).sum((1, 2, 3)), (up - down) / 2e-5, rtol=1e-5)


def test_sail_lowers_its_loss(normals):
    """Evaluated anew at where it ends: the target of no candidate can be met, and the lowest of them is taken."""
    model = normals()
    cond = model.encode(["any"] * 3)
    losses = {}
    for candidates in (1, 3):
        noise, moved = started(model, f"sail:target=0,candidates={candidates}")
        losses[candidates] = sail_loss(model, cond, moved, STEPS, 0.05)
    assert (losses[1] < sail_loss(model, cond, noise, STEPS, 0.05)).all()
    assert (losses[3] <= losses[1]).all()
    assert (losses[3] < losses[1]).any()


def test_sail_leaves_alone_what_is_under_its_target(normals):
    """And asks the model no more than it has to: the loss of one candidate."""
    model = normals()
    with model.counted() as cost:
        noise, moved = started(model, "sail:target=1000")
    assert torch.equal(noise, moved)
    assert cost.forward == 3 * 4


@pytest.mark.parametrize(
    "mitigation",
    ["batch-wise-noise", "per-sample-noise:iterations=3,target=0", "sail:target=0,candidates=2,iterations=2"],
)
def test_a_picture_s_noise_is_its_own(normals, mitigation):
    """Alone and among others."""
    model = normals()
    _, together = started(model, mitigation)
    for row, seed in enumerate(SEEDS):
        assert torch.allclose(started(model, mitigation, seeds=[seed])[1][0], together[row], atol=1e-12)


def test_noise_stays_noise(normals):
    """Its length stays near √D, as that of Gaussian noise."""
    for mitigation in ("batch-wise-noise", "per-sample-noise:target=0,iterations=20"):
        noise, moved = started(normals(), mitigation, seeds=range(4))
        assert not torch.equal(noise, moved)
        assert (norms(moved) / math.sqrt(192)).mean().item() == pytest.approx(1, abs=0.1), mitigation


def test_a_descent_counts_rows_that_are_still_above(normals):
    """Rows that are done cost nothing more."""
    asked = []

    def objective(x, rows):
        asked.append(rows.tolist())
        return x.flatten(1).square().sum(1)

    x = torch.ones(2, 1, 1, 1) * torch.tensor([1.0, 3.0]).reshape(2, 1, 1, 1)
    moved, values = descend(objective, x, target=1.0, lr=0.5, weight_decay=0.0, iterations=50)
    assert asked[0] == [0, 1]
    assert asked[1:] == [[1]] * (len(asked) - 1)
    assert torch.equal(moved[0], x[0])
    assert values.max() <= 1
    assert SailSampler().candidates == 8


@pytest.mark.parametrize(
    "text",
    ["sail:lr=-1", "per-sample-noise:lr=-1e-300", "prompt-reanchoring:false_alarms=2", "opposite-guidance:until=-1"],
)
def test_rates_and_shares_have_bounds(text):
    """They are refused where they are typed."""
    with pytest.raises(UserError, match=text.partition("=")[0]):
        parse("mitigation", text)
