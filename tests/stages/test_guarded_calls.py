"""The guard before a plain diffusers pipeline."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from unmemorize.core.errors import NotApplicable
from unmemorize.core.methods import Subject
from unmemorize.core.sample import Sampler, first_unconditional, generate, generators
from unmemorize.mitigate.guard import Guard as OnOwnLoop
from unmemorize.models.load import wrap
from unmemorize.stages.guard import Guard, Limits

PROMPTS = ["a lighthouse at dusk", "an owl on a fence"]
NEVER, ALWAYS = Limits(threshold=1e9, target=1.0), Limits(threshold=0.0, target=0.0)


def call(pipe, prompts=PROMPTS, **named):
    """Pictures of two steps with fixed seeds."""
    streams = generators(range(len(prompts) * named.get("num_images_per_prompt", 1)))
    how = {"num_inference_steps": 2, "output_type": "np", "generator": streams} | named
    return pipe(prompts, **how).images


def magnitudes(model, embeds, seeds):
    """The first step's magnitude of embeddings, computed without the guard."""
    from unmemorize.core.model import Condition

    empty = first_unconditional(model, seeds=seeds, steps=2)
    return model.predict(empty.x, model.schedule(2).timesteps[0], Condition(embeds)).gap(empty)


ARGUMENTS = {
    "plain": {},
    "without guidance": {"guidance_scale": 1.0},
    "another guidance": {"guidance_scale": 3.0},
    "a negative prompt": {"negative_prompt": ["the old harbour"] * 2},
    "two pictures a prompt": {"num_images_per_prompt": 2},
    "another size": {"height": 48, "width": 32},
    "stochastic and rescaled": {"eta": 0.5, "guidance_rescale": 0.3},
}


def test_pictures_of_embeddings_are_those_of_a_guarded_pipeline(tiny_pipe):
    """One of the two prompts is over the threshold: the sampler and the pipeline lower it alike, and it alone."""
    model = wrap(tiny_pipe)
    cond = model.encode(PROMPTS)
    scores = magnitudes(model, cond.embeds, range(2))
    limits = Limits(threshold=scores.mean().item(), target=0.5 * scores.min().item())
    guard = Guard(tiny_pipe, limits=limits, iterations=3)
    expected = torch.from_numpy(call(guard)).permute(0, 3, 1, 2)
    assert sum(guard.outcome.acted) == 1
    own = OnOwnLoop(threshold=limits.threshold, target=limits.target, iterations=3)
    with own.applied(Subject(model, Sampler(2))) as guarded:
        found = generate(model, cond, seeds=range(2), sampler=guarded.sampler)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert not torch.allclose(found, generate(model, cond, seeds=range(2), sampler=Sampler(2)), atol=1e-4)


@pytest.mark.parametrize("named", ARGUMENTS.values(), ids=ARGUMENTS)
def test_ordinary_calls_give_the_same_bytes(tiny_pipe, named):
    """Whatever the pipeline is asked for, a call without a memorized prompt gives what it gives unguarded."""
    guard = Guard(tiny_pipe, limits=NEVER)
    assert np.array_equal(call(guard, **named), call(tiny_pipe, **named))
    assert guard.outcome.acted == (False,) * len(guard.outcome.acted)


@pytest.mark.parametrize("named", ARGUMENTS.values(), ids=ARGUMENTS)
def test_memorized_calls_are_lowered(tiny_pipe, named):
    """Whatever the pipeline is asked for, a call over the threshold is changed and its magnitude falls."""
    guard = Guard(tiny_pipe, limits=ALWAYS, iterations=3)
    assert not np.array_equal(call(guard, **named), call(tiny_pipe, **named))
    assert all(guard.outcome.acted)
    assert all(after < before for before, after in zip(guard.outcome.before, guard.outcome.after, strict=True))


def test_the_scores_are_the_detectors(tiny_pipe):
    """What the guard reads off the pipeline's first evaluation is the first step's magnitude."""
    guard = Guard(tiny_pipe, limits=NEVER)
    call(guard)
    model = wrap(tiny_pipe)
    by_hand = magnitudes(model, model.encode(PROMPTS).embeds, [0, 1])
    assert guard.outcome.before == pytest.approx(by_hand.tolist(), rel=1e-4)


@pytest.mark.parametrize("named", [{"guidance_scale": 1.0}, {"negative_prompt": ["the old harbour"] * 2}])
def test_scores_are_against_the_empty_prompt(tiny_pipe, named):
    """Also where the pipeline itself never evaluates it; that costs one evaluation a picture."""
    guard = Guard(tiny_pipe, limits=NEVER)
    call(guard)
    plain = guard.outcome
    call(guard, **named)
    assert guard.outcome.before == pytest.approx(plain.before, rel=1e-4)
    assert (plain.evaluations, guard.outcome.evaluations) == (0, 2)


def test_only_memorized_pictures_change(tiny_pipe):
    """Of two prompts in one call the one under the threshold keeps its embedding and, to rounding, its picture."""
    guard = Guard(tiny_pipe, limits=NEVER)
    call(guard)
    scores = guard.outcome.before
    middle = Limits(threshold=sum(scores) / 2, target=0.5 * min(scores))
    high = int(np.argmax(scores))
    guard = Guard(tiny_pipe, limits=middle, iterations=5)
    pictures, alone = call(guard), call(tiny_pipe)
    assert guard.outcome.acted[high]
    assert not guard.outcome.acted[1 - high]
    assert np.array_equal(pictures[1 - high], alone[1 - high])
    assert not np.allclose(pictures[high], alone[high], atol=1e-3)


def test_a_picture_does_not_depend_on_those_made_with_it(tiny_pipe):
    """The guarded picture of a prompt and seed is the same alone and in a batch."""
    guard = Guard(tiny_pipe, limits=ALWAYS, iterations=3)
    together = call(guard)
    alone = call(guard, PROMPTS[:1])
    assert np.allclose(together[0], alone[0], atol=1e-4)


def test_lowered_pictures_are_those_of_the_lowered_embedding(tiny_pipe):
    """The pipeline, given the embedding that the guard found, makes the guarded picture."""
    from unmemorize.mitigate.guard import lower_at_start

    guarded = call(Guard(tiny_pipe, limits=ALWAYS, iterations=3))
    model = wrap(tiny_pipe)
    cond, empty = model.encode(PROMPTS), first_unconditional(model, seeds=[0, 1], steps=2)
    lowered = lower_at_start(model, cond, empty, model.schedule(2).timesteps[0], target=0.0, iterations=3)
    made = generate(model, cond.with_embeds(lowered.embeds), seeds=[0, 1], sampler=Sampler(2))
    images = made.permute(0, 2, 3, 1).numpy()
    assert np.allclose(guarded, images, atol=1e-3)


def test_nothing_stays_on_the_pipeline(tiny_pipe):
    """Hooks are gone after a call and after a call that failed; the generator was not used by the guard."""
    unet = tiny_pipe.unet
    guard = Guard(tiny_pipe, limits=ALWAYS, iterations=1)
    call(guard)
    with pytest.raises(ValueError, match="Cannot forward both"):
        guard("a prompt", prompt_embeds=torch.zeros(1, 24, 16))
    assert not unet._forward_hooks
    assert not unet._forward_pre_hooks
    assert all(p.requires_grad and p.grad is None for p in unet.parameters())


def test_limits_come_from_ordinary_prompts(tiny_pipe):
    """They are calibrated once per first timestep and size, promise a share of false alarms, and cost no call."""
    ordinary = [f"an owl number {i}" for i in range(40)]
    guard = Guard(tiny_pipe, ordinary=ordinary, false_alarms=0.1)
    call(guard, num_inference_steps=2)
    first = guard.outcome.limits
    assert guard.outcome.evaluations == 0 or any(guard.outcome.acted)
    model = wrap(tiny_pipe)
    scores = torch.cat([magnitudes(model, model.encode([p]).embeds, [i]) for i, p in enumerate(ordinary)])
    assert first.threshold == pytest.approx(scores.sort().values[36].item(), rel=1e-3)  # ⌈41 · 0.9⌉-th of 40
    assert first.target == pytest.approx(scores.double().quantile(0.05).item(), rel=1e-3)
    call(guard, num_inference_steps=20)
    assert guard.outcome.limits != first


def test_too_few_ordinary_prompts(tiny_pipe):
    """A threshold that cannot be promised is refused, not made up."""
    with pytest.raises(NotApplicable, match="99 ordinary prompts"):
        call(Guard(tiny_pipe, ordinary=["an owl"] * 20))


def test_prompt_embeddings_are_guarded_too(tiny_pipe):
    """A caller that encodes by itself gets the same protection."""
    embeds = wrap(tiny_pipe).encode(PROMPTS).embeds
    guard = Guard(tiny_pipe, limits=ALWAYS, iterations=2)
    named = {"num_inference_steps": 2, "output_type": "np"}
    by_embeds = guard(prompt_embeds=embeds, generator=generators([0, 1]), **named).images
    assert np.array_equal(by_embeds, call(guard))


def test_a_velocity_model_is_read_in_its_own_output(tiny_pipe):
    """For v-prediction the magnitude is that of the predicted velocities."""
    pipe = copy.copy(tiny_pipe)
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, prediction_type="v_prediction")
    guard = Guard(pipe, limits=NEVER)
    call(guard)
    model = wrap(pipe)
    by_hand = magnitudes(model, model.encode(PROMPTS).embeds, [0, 1])
    assert guard.outcome.before == pytest.approx(by_hand.tolist(), rel=1e-4)
