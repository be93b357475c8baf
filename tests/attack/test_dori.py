"""The embedding attack: on a model that knows its pictures, against finite differences, and batch by batch."""

from __future__ import annotations

import pytest
import torch

from unmemorize.attack.dori import Dori
from unmemorize.core.errors import UserError
from unmemorize.core.hooks import patched
from unmemorize.core.methods import Subject
from unmemorize.core.model import Condition
from unmemorize.core.sample import Sampler, generate

QUICK = Dori(updates=3, batch=2)


def dori(model, latents, start, *, seeds, how, **options):
    return how.attack(Subject(model), latents, start, seeds=seeds, **options)


@pytest.fixture
def targets(tiny_model):
    """Latents of three pictures, and embeddings to start from."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 4, 8, 8, generator=generator), tiny_model.encode(["one", "two", "three"])


@pytest.mark.parametrize("wanted", [0, 3, 5])
def test_a_stored_picture_is_found(oracle, wanted):
    """From an embedding that favours no picture, the attack finds the one whose picture it was given."""
    latent = oracle.denoiser.images[wanted : wanted + 1]
    start = Condition(torch.zeros(1, 1, 6, dtype=torch.float64))
    attack = dori(oracle, latent, start, seeds=[0], how=Dori(updates=150))
    assert attack.last.embeds.argmax().item() == wanted
    image = generate(oracle, attack.last, seeds=[1], sampler=Sampler(20, 1.0))
    assert (image - oracle.decode(latent)).square().mean().sqrt() < 0.03


def test_a_picture_that_is_not_stored_is_not_found(oracle):
    """A model that holds other pictures has no embedding for this one: whatever comes out is a stored one."""
    latent = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(9), dtype=torch.float64) * 2 - 1
    attack = dori(
        oracle, latent, Condition(torch.zeros(1, 1, 6, dtype=torch.float64)), seeds=[0], how=Dori(updates=150)
    )
    image = generate(oracle, attack.last, seeds=[1], sampler=Sampler(20, 1.0))
    assert (image - oracle.decode(latent)).square().mean().sqrt() > 0.2


def test_the_first_update_goes_against_the_finite_difference(oracle):
    """Adam's first update is the sign of the gradient: it agrees with finite differences of the very loss it saw."""
    latent, start = oracle.denoiser.images[1:2], torch.zeros(1, 1, 6, dtype=torch.float64)

    def loss(y):
        return dori(oracle, latent, Condition(y), seeds=[4], how=Dori(updates=1)).losses.item()

    updated = dori(oracle, latent, Condition(start), seeds=[4], how=Dori(updates=1)).last.embeds
    for k in range(6):
        step = torch.zeros_like(start)
        step[..., k] = 0.05
        slope = loss(start + step) - loss(start - step)
        assert torch.sign(updated[..., k]).item() == -torch.sign(torch.tensor(slope)).item()
        assert abs(updated[..., k].item()) == pytest.approx(0.1, rel=1e-3)


def test_pictures_do_not_depend_on_those_attacked_with_them(tiny_model, targets):
    """One at a time, all at once, in any split: the same embeddings."""
    latents, init = targets
    together = dori(tiny_model, latents, init, seeds=[5, 6, 7], how=QUICK).last.embeds
    split = dori(tiny_model, latents, init, seeds=[5, 6, 7], how=QUICK, rows=4).last.embeds
    assert torch.allclose(together, split, atol=1e-4)
    for i in range(3):
        alone = dori(tiny_model, latents[i : i + 1], init[i : i + 1], seeds=[5 + i], how=QUICK).last.embeds
        assert torch.allclose(together[i : i + 1], alone, atol=1e-4)


def test_a_curve_is_one_run(tiny_model, targets):
    """What is kept on the way is what a shorter attack ends with; the start is kept in its own bits."""
    latents, init = targets
    long = dori(tiny_model, latents, init, seeds=[5, 6, 7], how=QUICK, keep=(0, 1))
    assert sorted(long.conditions) == [0, 1, 3]
    assert torch.equal(long.conditions[0].embeds, init.embeds)
    short = dori(tiny_model, latents, init, seeds=[5, 6, 7], how=Dori(updates=1, batch=2))
    assert torch.equal(long.conditions[1].embeds, short.last.embeds)


def test_cost_and_losses(tiny_model, targets, cost):
    """One evaluation a picture, row and update; one loss a picture and update."""
    latents, init = targets
    attack = dori(tiny_model, latents, init, seeds=[5, 6, 7], how=QUICK)
    assert attack.evaluations == cost.forward == 3 * 2 * 3
    assert attack.losses.shape == (3, 3)


def test_the_model_is_left_alone(tiny_model, targets):
    """No gradient on a parameter, flags and modes as before."""
    latents, init = targets
    dori(tiny_model, latents, init, seeds=[5, 6, 7], how=QUICK)
    assert all(p.requires_grad and p.grad is None for p in tiny_model.denoiser.parameters())


def test_hooks_stay_active_during_the_search(tiny_model, targets):
    """An attack on a pruned model is an attack on the pruned model."""
    latents, init = targets
    plain = dori(tiny_model, latents, init, seeds=[5, 6, 7], how=QUICK).last.embeds
    name = next(n for n, _ in tiny_model.denoiser.named_modules() if n.endswith("attn2.to_v"))
    with patched(tiny_model.denoiser, {name: torch.zeros_like}):
        pruned = dori(tiny_model, latents, init, seeds=[5, 6, 7], how=QUICK).last.embeds
    assert not torch.allclose(plain, pruned)


@pytest.mark.parametrize("tokens", [1, 3])
def test_a_narrow_search_moves_so_many_positions(tiny_model, targets, tokens):
    """They start where the search starts; all others are the empty prompt's, before and after it."""
    latents, start = targets
    empty = tiny_model.encode([""]).embeds
    found = dori(tiny_model, latents, start, seeds=[1, 2, 3], how=Dori(updates=2, batch=2, tokens=tokens), keep=[0])
    first, last = found.conditions[0].embeds, found.last.embeds
    free = slice(1, 1 + tokens)
    assert torch.equal(first[:, free], start.embeds[:, free])
    assert not torch.isclose(first[:, free], last[:, free]).all(dim=-1).any()
    for embeds in (first, last):
        outside = embeds.clone()
        outside[:, free] = empty[:, free]
        assert torch.equal(outside, empty.expand_as(outside))


def test_more_positions_than_there_are_is_one_line(tiny_model, targets):
    """It says how many there are."""
    latents, start = targets
    positions = start.embeds.shape[1] - 1
    with pytest.raises(UserError, match=f"tokens={positions + 1}: there are {positions} positions behind the first"):
        dori(tiny_model, latents, start, seeds=[1, 2, 3], how=Dori(updates=1, batch=2, tokens=positions + 1))
