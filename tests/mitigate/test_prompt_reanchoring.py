"""PRSS: which words are taken, and where guidance has its anchor."""

from __future__ import annotations

import pytest
import torch

from unmemorize.core.errors import NotApplicable, UserError
from unmemorize.core.methods import Subject, parse
from unmemorize.core.sample import Sampler, generators, sample, sampling_start, trajectory
from unmemorize.mitigate.guard import magnitudes
from unmemorize.mitigate.prompt_reanchoring import ReanchoredSampler, reanchored, without_each_word

PROMPTS = ["a green bicycle", "an owl on a fence"]
STEPS, SCALE = 4, 5.0
SEEDS = [3, 4]


def drawn(model, threshold, prompts=PROMPTS, low=1.0, high=3.0):
    """Every step of sampling, and the sampler that saw them."""
    sampler = ReanchoredSampler(STEPS, SCALE, threshold, low, high)
    return list(trajectory(model, model.encode(prompts), seeds=SEEDS[: len(prompts)], sampler=sampler))


def first_gaps(model, seed, texts):
    """Magnitudes at the first step, one by one."""
    x, t = sampling_start(model, model.noise(generators([seed])), STEPS)
    with torch.no_grad():
        empty = model.predict(x, t, model.unconditional(1))
        return [float(model.predict(x, t, model.encode([text])).gap(empty)) for text in texts]


def test_a_word_is_left_out_at_all_its_places():
    shorter = without_each_word("the owl and the boat")
    assert shorter == ["owl and boat", "the and the boat", "the owl the boat", "the owl and the"]
    assert without_each_word("owl") == []
    assert without_each_word("owl owl") == []


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_that_is_low_enough_is_taken_or_the_lowest(tiny_model, rank):
    """With a threshold that one of the shorter prompts meets, and with one that none does."""
    texts = without_each_word(PROMPTS[1])
    gaps = first_gaps(tiny_model, SEEDS[0], [PROMPTS[1], *texts])
    assert gaps[0] > min(gaps[1:])
    threshold = sorted(gaps[1:])[0] * (0.999 if rank == 0 else 1.001)
    expected = texts[gaps.index(min(gaps[1:])) - 1]
    cond = tiny_model.encode([PROMPTS[1]])
    noise = tiny_model.noise(generators(SEEDS[:1]))
    changed, same = ReanchoredSampler(STEPS, SCALE, threshold).start(tiny_model, cond, noise, SEEDS[:1])
    assert same is noise
    assert changed.texts == (expected,)
    assert torch.equal(changed.embeds, tiny_model.encode([expected]).embeds)


def test_under_the_threshold_nothing_changes(tiny_model):
    """Bit for bit; and a prompt under it is left alone beside one over it."""
    cond = tiny_model.encode(PROMPTS)
    plain = sample(tiny_model, cond, seeds=SEEDS, sampler=Sampler(STEPS, SCALE))
    assert torch.equal(drawn(tiny_model, 1e9)[-1].x_next, plain)
    gaps = [first_gaps(tiny_model, seed, [text])[0] for seed, text in zip(SEEDS, PROMPTS, strict=True)]
    between = sum(gaps) / 2
    mixed = drawn(tiny_model, between)[-1].x_next
    for row, gap in enumerate(gaps):
        assert torch.allclose(mixed[row], plain[row], atol=1e-4) == (gap <= between)


def test_the_anchor_moves_with_the_magnitude(tiny_model):
    """At both ends of the strength, and in between by hand from the four predictions."""
    cond = tiny_model.encode(PROMPTS)
    (step, *_) = trajectory(tiny_model, cond, seeds=SEEDS, sampler=Sampler(STEPS, SCALE))
    own = step.predict(tiny_model.encode(["the old harbour"] * 2)).output
    words, nothing = step.cond.output, step.uncond.output
    usual = reanchored(step, own, torch.ones(2), SCALE)
    assert torch.allclose(usual, nothing + SCALE * (words - nothing), atol=1e-5)
    away = reanchored(step, own, torch.full((2,), SCALE), SCALE)
    assert torch.allclose(away, own + SCALE * (words - own), atol=1e-5)


def test_every_step_is_guided_by_its_own_magnitude(tiny_model):
    """s rises from 1 at the low threshold to the scale at the high one."""
    threshold = 0.5 * min(first_gaps(tiny_model, 3, PROMPTS))
    steps = drawn(tiny_model, threshold)
    acted = 0
    for step in steps:
        with torch.no_grad():
            own = step.predict(tiny_model.encode(PROMPTS)).output
        for row in range(2):
            words, nothing = step.cond.output[row], step.uncond.output[row]
            m = float((words - nothing).norm()) / threshold
            s = min(1 + (SCALE - 1) * (m - 1) / 2, SCALE)
            expected = own[row] + s * (words - own[row]) + (SCALE - s) * (words - nothing)
            if m <= 1:
                expected = nothing + SCALE * (words - nothing)
            acted += m > 1
            moved = tiny_model.schedule(STEPS).step(expected[None], step.t, step.x[[row]], generators([0]))
            assert torch.allclose(step.x_next[[row]], moved, atol=1e-4)
    assert acted


def test_the_threshold_is_the_guard_s_and_guidance_is_needed(tiny_model):
    subject, ordinary = Subject(tiny_model, Sampler(STEPS, SCALE)), [f"a thing {i}" for i in range(30)]
    method = parse("mitigation", "prompt-reanchoring")
    fitted = method.fitted(subject, ordinary=tiny_model.encode(ordinary), seeds=[0, 1])
    assert fitted.threshold == pytest.approx(max(magnitudes(subject, tiny_model.encode(ordinary), [0, 1])))
    with pytest.raises(UserError, match="no threshold"), method.applied(subject):
        pass
    with pytest.raises(NotApplicable, match="guidance is off"), fitted.applied(Subject(tiny_model, Sampler(STEPS, 1))):
        pass
