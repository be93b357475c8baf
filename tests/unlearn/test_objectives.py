"""Objectives: their losses written out, what is drawn, and the adversary's memory."""

from __future__ import annotations

import pytest
import torch

from unmemorize.core.model import Condition
from unmemorize.core.results import Found, Pairs, Surrogates
from unmemorize.models.load import wrap
from unmemorize.unlearn.adversarial import InnerLoop, NoAdversary, Replacing
from unmemorize.unlearn.deletion import Ordinary
from unmemorize.unlearn.denoising import draw_rows, in_turn
from unmemorize.unlearn.loop import Team
from unmemorize.unlearn.neggrad import Ascent
from unmemorize.unlearn.surrogates import draw_surrogates

TEAM = Team()


@pytest.fixture
def model(make_pipe):
    """A model whose gradients may be left."""
    return wrap(make_pipe())


@pytest.fixture
def pairs(model):
    """Three pairs."""
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return Pairs(latents, model.encode(["one", "two", "three"]))


def test_every_item_has_its_turn():
    """Each lap is a shuffle; places alone decide, not who asks."""
    line = in_turn(5, range(20), 0)
    assert all(sorted(line[i : i + 5].tolist()) == list(range(5)) for i in range(0, 20, 5))
    assert torch.equal(line[7:13], in_turn(5, range(7, 13), 0))
    assert not torch.equal(line, in_turn(5, range(20), 1))


def test_processes_split_the_rows_of_one():
    """Two halves are the whole: items and streams."""
    whole = draw_rows(7, 6, slice(0, 6), update=4, name=(3, 1))
    halves = [draw_rows(7, 6, share, update=4, name=(3, 1)) for share in (slice(0, 3), slice(3, 6))]
    assert torch.equal(torch.cat([h.items for h in halves]), whole.items)
    assert torch.equal(torch.cat([h.coins() for h in halves]), whole.coins())


def test_deletion_is_the_denoising_loss(model, pairs):
    """All captions dropped, or none: the error of the predicted noise, written out."""
    empty = model.encode([""])
    alphas = model.pipe.scheduler.alphas_cumprod
    for dropped, empties in ((0.0, None), (1.0, empty)):
        rows = draw_rows(3, 4, slice(0, 4), update=2, name=(0, 0))
        rows.coins()
        t = torch.cat([torch.randint(1000, (1,), generator=g) for g in rows.streams])
        noise = torch.stack([torch.randn(4, 8, 8, generator=g) for g in rows.streams])
        a = alphas[t].reshape(-1, 1, 1, 1)
        x = a.sqrt() * pairs.latents[rows.items] + (1 - a).sqrt() * noise
        given = pairs.captions[rows.items] if empties is None else empties.repeat(4)
        expected = (model.predict(x, t, given).eps - noise).square().mean()
        loss = Ordinary(pairs, empty, batch=4, dropped=dropped).loss(model, 2, TEAM)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_neggrad_descends_one_and_ascends_the_other(model, pairs):
    """Its gradient is that of the difference of the two losses it shows."""
    keep = Ordinary(pairs, model.encode([""]), batch=2)
    parameter = model.denoiser.conv_in.weight
    gradients = []
    for strength in (0.0, 1.0, 2.0):
        model.denoiser.zero_grad()
        shown = Ascent(keep, pairs, strength).backward(model, 0, TEAM)
        gradients.append(parameter.grad.clone())
    (own,) = torch.autograd.grad(keep.loss(model, 0, TEAM), parameter)
    assert torch.allclose(gradients[0], own, atol=1e-6)
    assert torch.allclose(gradients[2] - gradients[1], gradients[1] - gradients[0], atol=1e-5)
    assert torch.allclose(gradients[1] - gradients[0], -_forget_gradient(model, pairs, parameter), atol=1e-5)
    assert set(shown) == {"ordinary", "forget"}


def _forget_gradient(model, pairs, parameter):
    rows = draw_rows(3, 2, slice(0, 2), update=0, name=(0, 1))
    t = torch.cat([torch.randint(1000, (1,), generator=g) for g in rows.streams])
    noise = torch.stack([torch.randn(4, 8, 8, generator=g) for g in rows.streams])
    x = model.add_noise(pairs.latents[rows.items], noise, t)
    loss = (model.predict(x, t, pairs.captions[rows.items]).eps - noise).square().mean()
    return torch.autograd.grad(loss, parameter)[0]


def test_adversarial_adds_ordinary_and_surrogates_one_to_one(model, pairs):
    """Its gradient is the sum of the gradients of both halves; embeddings are constants."""
    empty = model.encode([""])
    keep = Ordinary(pairs, empty, batch=2)
    surrogates = Surrogates(pairs.latents.flip(0), torch.arange(3))
    hostile = torch.randn(3, *pairs.captions.embeds.shape[1:], generator=torch.Generator().manual_seed(5))
    objective = Replacing(keep, surrogates, NoAdversary(Condition(hostile)))
    parameter = model.denoiser.conv_in.weight
    model.denoiser.zero_grad()
    shown = objective.backward(model, 1, TEAM)
    rows = draw_rows(3, 2, slice(0, 2), update=1, name=(0, 1))
    x0 = draw_surrogates(surrogates, rows)
    t = torch.cat([torch.randint(1000, (1,), generator=g) for g in rows.streams])
    noise = torch.stack([torch.randn(4, 8, 8, generator=g) for g in rows.streams])
    cond = Condition(hostile[rows.items])
    replaced = (model.predict(model.add_noise(x0, noise, t), t, cond).eps - noise).square().mean()
    total = replaced + keep.loss(model, 1, TEAM)
    assert shown["surrogates"].item() == pytest.approx(replaced.item(), rel=1e-5)
    assert torch.allclose(parameter.grad, torch.autograd.grad(total, parameter)[0], atol=1e-6)


def asked(log):
    """An attack that records where it starts and adds one."""

    class Asked:
        def attack(self, subject, latents, start, *, seeds):
            log.append((latents, start.embeds.clone(), tuple(seeds)))
            return Found({1: start.with_embeds(start.embeds + 1)}, torch.zeros(1, len(latents)), 0)

    return Asked()


def test_an_inner_loop_attacks_its_pictures(model, pairs):
    """Fresh every time, from the prompt or from noise; seeds differ between rows and updates."""
    for random, start in ((0.0, pairs.captions.embeds), (1.0, None)):
        log = []
        loop = InnerLoop(asked(log), pairs, random=random)
        for update in range(2):
            rows = draw_rows(3, 3, slice(0, 3), update=update, name=(0, 1))
            found = loop.conditions(model, rows).embeds
            latents, init, _ = log[-1]
            assert torch.equal(latents, pairs.latents[rows.items])
            assert torch.equal(found, init + 1)
            if start is not None:
                assert torch.equal(init, start[rows.items])
        assert len({seed for _, _, seeds in log for seed in seeds}) == 6
    assert abs(log[0][1].std().item() - 1) < 0.1
