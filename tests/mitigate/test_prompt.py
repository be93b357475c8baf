"""Lowering the magnitude: it falls, row by row, and never touches what it must not."""

from __future__ import annotations

import torch

from unmemorize.core.sample import first_unconditional
from unmemorize.mitigate.prompt import lower_at_start

PROMPTS = ["a lighthouse at dusk", "an owl on a fence", "the old harbour"]


def scores(model, cond, seeds):
    empty = first_unconditional(model, seeds=seeds)
    return model.predict(empty.x, model.schedule(50).timesteps[0], cond).gap(empty)


def test_the_magnitude_falls_to_the_target(tiny_model):
    """The embeddings that come out have the magnitude that is stated, under the target."""
    cond = tiny_model.encode(PROMPTS)
    before = scores(tiny_model, cond, [0, 1, 2])
    target = 0.7 * before.min().item()
    lowered, found = lower_at_start(tiny_model, cond, seeds=[0, 1, 2], target=target, iterations=50)
    after = scores(tiny_model, lowered, [0, 1, 2])
    assert torch.allclose(found.before, before, rtol=1e-4)
    assert torch.allclose(found.after, after, rtol=1e-4)
    assert (after <= target).all()


def test_a_picture_does_not_depend_on_those_made_with_it(tiny_model):
    """Alone or among others, in any place of the batch, a picture gets the same embedding."""
    cond = tiny_model.encode(PROMPTS)
    target = 0.8 * scores(tiny_model, cond, [0, 1, 2]).max().item()
    together, _ = lower_at_start(tiny_model, cond, seeds=[0, 1, 2], target=target)
    for row in range(3):
        alone, _ = lower_at_start(tiny_model, cond[row : row + 1], seeds=[row], target=target)
        assert torch.allclose(alone.embeds[0], together.embeds[row], atol=1e-4)


def test_the_begin_token_stays_in_bits(tiny_model):
    """Neither gradient nor weight decay moves it."""
    cond = tiny_model.encode(PROMPTS)
    lowered, _ = lower_at_start(tiny_model, cond, seeds=[0, 1, 2], target=0.0, iterations=3)
    assert torch.equal(lowered.embeds[:, 0], cond.embeds[:, 0])
    assert not torch.equal(lowered.embeds[:, 1:], cond.embeds[:, 1:])


def test_what_is_under_the_target_stays_in_bits(tiny_model, cost):
    """An ordinary prompt's embedding is returned unchanged, after one evaluation."""
    cond = tiny_model.encode(PROMPTS)
    lowered, found = lower_at_start(tiny_model, cond, seeds=[0, 1, 2], target=1e9)
    assert torch.equal(lowered.embeds, cond.embeds)
    assert found.trace.shape == (1, 3)
    assert cost.forward == 3 + 3


def test_the_number_of_updates_is_kept(tiny_model):
    """An unreachable target stops after the stated number of updates, with what they reached."""
    _, found = lower_at_start(tiny_model, tiny_model.encode(PROMPTS[:1]), seeds=[0], target=0.0, iterations=4)
    assert found.trace.shape == (5, 1)
    assert found.after < found.before


def test_it_works_inside_no_grad_and_leaves_the_model_alone(tiny_model):
    """As in a pipeline's call: gradients are on for the embedding alone, and flags come back."""
    with torch.no_grad():
        _, found = lower_at_start(tiny_model, tiny_model.encode(PROMPTS[:1]), seeds=[0], target=0.0, iterations=2)
    assert found.after < found.before
    assert all(p.grad is None and p.requires_grad for p in tiny_model.denoiser.parameters())
