"""Lowering the magnitude: it falls, row by row, and never touches what it must not."""

from __future__ import annotations

import pytest
import torch

from unmemorize.core.errors import UserError
from unmemorize.core.methods import Subject, parse
from unmemorize.core.sample import Sampler, first_unconditional, generate
from unmemorize.mitigate.guard import Guard, magnitudes
from unmemorize.mitigate.guard import lower_at_start as lower

PROMPTS = ["a lighthouse at dusk", "an owl on a fence", "the old harbour"]


def lower_at_start(model, cond, *, seeds, target, iterations=10):
    empty = first_unconditional(model, seeds=seeds)
    found = lower(model, cond, empty, model.schedule(50).timesteps[0], target=target, iterations=iterations)
    return cond.with_embeds(found.embeds), found


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


def test_ordinary_prompts_give_its_limits_one_seed_each(tiny_model):
    """Limits are those of each prompt's magnitude at one of the seeds in turn; named limits are kept."""
    prompts = [f"a thing {i}" for i in range(30)]
    subject = Subject(tiny_model)
    fitted = Guard().fitted(subject, ordinary=tiny_model.encode(prompts), seeds=[3, 4])
    by_hand = []
    for place, prompt in enumerate(prompts):
        by_hand.append(scores(tiny_model, tiny_model.encode([prompt]), [[3, 4][place % 2]]).item())
    assert magnitudes(subject, tiny_model.encode(prompts), [3, 4]) == pytest.approx(by_hand, rel=1e-4)
    assert fitted.threshold == pytest.approx(max(by_hand), rel=1e-4)  # of thirty, one in thirty-one
    assert min(by_hand) <= fitted.target < fitted.threshold
    named = parse("mitigation", "guard:threshold=2,target=1")
    assert named.fitted(subject) is named
    with pytest.raises(UserError, match="ordinary prompts"):
        Guard().fitted(subject)
    with pytest.raises(UserError, match="no limits"), Guard().applied(subject):
        pass


def test_pictures_of_ordinary_prompts_stay_in_bits_and_others_are_brought_down(tiny_model):
    """Row by row: only what is over the threshold is changed, as it is when it is made alone."""
    cond, seeds = tiny_model.encode(PROMPTS), [0, 1, 2]
    sampler = Sampler(3)
    before = torch.tensor(magnitudes(Subject(tiny_model, sampler), cond, seeds))
    limits = before.sort().values
    middle = float(limits[1:].mean())
    guard = Guard(threshold=middle, target=0.8 * middle)
    plain = generate(tiny_model, cond, seeds=seeds, sampler=sampler)
    with guard.applied(Subject(tiny_model, sampler)) as guarded:
        made = generate(tiny_model, cond, seeds=seeds, sampler=guarded.sampler)
        highest = int(before.argmax())
        alone = generate(tiny_model, cond[[highest]], seeds=[seeds[highest]], sampler=guarded.sampler)
    for row in range(3):
        assert torch.equal(made[row], plain[row]) == (row != highest)
    assert torch.allclose(made[highest], alone[0], atol=1e-3)
