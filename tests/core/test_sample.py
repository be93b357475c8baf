"""The sampling loop: seeds, cost, and what it leaves alone."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch

from unmemorize.core.errors import UserError
from unmemorize.core.sample import Sampler, first_conditional, first_unconditional, generate, generators, trajectory

PROMPTS = ["a lighthouse at dusk", "an owl on a fence", "the old harbour"]
SEEDS = [7, 8, 9]


def final(model, prompts, seeds, guidance=None):
    *_, last = trajectory(model, model.encode(prompts), seeds=seeds, sampler=Sampler(3, guidance))
    return last.x_next


def test_noise_depends_on_its_seed_alone(tiny_model):
    """A picture's initial noise is the same alone and anywhere in a batch."""
    batch = tiny_model.noise(generators([5, 6, 7]))
    assert torch.equal(tiny_model.noise(generators([6])), batch[1:2])
    assert torch.equal(tiny_model.noise(generators([7, 5])), batch[[2, 0]])
    assert not torch.equal(batch[0], batch[1])


def test_a_trajectory_does_not_depend_on_its_neighbours(tiny_model):
    """A row of a batch is the same picture, up to rounding, as when it is sampled alone."""
    batch = final(tiny_model, PROMPTS, SEEDS)
    for i, prompt in enumerate(PROMPTS):
        assert torch.allclose(final(tiny_model, [prompt], [SEEDS[i]]), batch[i : i + 1], rtol=1e-3, atol=1e-3)


def test_conditional_rows_are_the_prompts_and_unconditional_rows_the_empty_ones(tiny_model):
    """At any batch size `cond` holds the prompts' predictions and `uncond` the empty prompt's, row by row."""
    step = next(trajectory(tiny_model, tiny_model.encode(PROMPTS), seeds=SEEDS, sampler=Sampler(3)))
    assert torch.equal(step.cond.x, step.uncond.x)
    with torch.no_grad():
        for i, prompt in enumerate(PROMPTS):
            x = step.cond.x[i : i + 1]
            prompted = tiny_model.predict(x, step.t, tiny_model.encode([prompt])).eps
            empty = tiny_model.predict(x, step.t, tiny_model.encode([""])).eps
            assert torch.allclose(step.cond.eps[i : i + 1], prompted, atol=1e-5)
            assert torch.allclose(step.uncond.eps[i : i + 1], empty, atol=1e-5)
            assert not torch.allclose(prompted, empty, atol=1e-4)


@pytest.mark.parametrize("seeds", [[], [1], [1, 2, 3, 4]])
def test_a_wrong_number_of_seeds_is_refused(tiny_model, seeds):
    """Too few or too many seeds are an error that gives both counts."""
    cond = tiny_model.encode(PROMPTS)
    with pytest.raises(ValueError, match=rf"one seed per prompt, got {len(seeds)} seeds for 3 prompts"):
        next(trajectory(tiny_model, cond, seeds=seeds, sampler=Sampler(2)))


@pytest.mark.parametrize("steps", [1000, 1001])
def test_more_steps_than_levels_are_refused(tiny_model, steps):
    """Its schedule has a thousand levels, and an offset of one."""
    with pytest.raises(UserError, match=f"{steps} sampling steps"):
        tiny_model.schedule(steps)
    assert len(tiny_model.schedule(999).timesteps) == 999


def test_steps_are_linked_and_counted(tiny_model, cost):
    """Steps are numbered, each starts where the last ended, and every one of them costs two rows an image."""
    steps = list(trajectory(tiny_model, tiny_model.encode(PROMPTS), seeds=SEEDS, sampler=Sampler(3)))
    assert [s.index for s in steps] == [0, 1, 2]
    assert all(torch.equal(a.x_next, b.x) for a, b in pairwise(steps))
    assert cost.forward == 3 * 2 * len(PROMPTS)


def test_reading_only_the_first_step_costs_only_the_first_step(tiny_model, cost):
    """A detector that reads one step pays for one step: the next is not run before the first is handed over."""
    next(trajectory(tiny_model, tiny_model.encode(PROMPTS), seeds=SEEDS, sampler=Sampler(50)))
    assert cost.forward == 2 * len(PROMPTS)


@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_without_guidance_there_is_no_unconditional_branch(tiny_model, guidance, cost):
    """At guidance 1 and below `uncond` is None and nothing is paid for it."""
    steps = list(trajectory(tiny_model, tiny_model.encode(PROMPTS), seeds=SEEDS, sampler=Sampler(2, guidance)))
    assert all(s.uncond is None for s in steps)
    assert cost.forward == 2 * len(PROMPTS)


def test_guidance_moves_away_from_what_it_is_given(tiny_model):
    """`uncond` replaces the empty prompt; guiding a prompt away from itself is no guidance at all."""
    cond = tiny_model.encode(PROMPTS)
    *_, guided = trajectory(tiny_model, cond, seeds=SEEDS, sampler=Sampler(3, 5.0), uncond=cond)
    assert torch.allclose(guided.x_next, final(tiny_model, PROMPTS, SEEDS, guidance=1.0), atol=1e-4)
    assert not torch.allclose(guided.x_next, final(tiny_model, PROMPTS, SEEDS, guidance=5.0), atol=1e-3)


def test_gradients_flow_only_when_asked_for(tiny_model):
    """With `grad` the final latent is differentiable in the embeddings; without, no graph is kept."""
    cond = tiny_model.encode(PROMPTS[:1])
    cond.embeds.requires_grad_()
    *_, last = trajectory(tiny_model, cond, seeds=[1], sampler=Sampler(2), grad=True)
    (slope,) = torch.autograd.grad(last.x_next.square().sum(), cond.embeds)
    assert slope.abs().sum() > 0
    *_, plain = trajectory(tiny_model, cond, seeds=[1], sampler=Sampler(2))
    assert not plain.x_next.requires_grad


def test_sampling_changes_nothing_outside(tiny_pipe, tiny_model):
    """The global random state, weights, train flags, gradient mode and the pipeline's scheduler stay as they were."""
    modules = (tiny_pipe.unet, tiny_pipe.vae, tiny_pipe.text_encoder)
    weights = [copy.deepcopy(m.state_dict()) for m in modules]
    flags = [[s.training for s in m.modules()] for m in modules]
    scheduler = copy.deepcopy(vars(tiny_pipe.scheduler))
    components = dict(tiny_pipe.components)
    state = torch.get_rng_state()
    generate(tiny_model, tiny_model.encode(PROMPTS), seeds=SEEDS, sampler=Sampler(3))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()
    for module, before in zip(modules, weights, strict=True):
        assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert [[s.training for s in m.modules()] for m in modules] == flags
    assert all(tiny_pipe.components[name] is part for name, part in components.items())
    after = vars(tiny_pipe.scheduler)
    assert after.keys() == scheduler.keys()
    for name, value in scheduler.items():
        assert torch.equal(after[name], value) if isinstance(value, torch.Tensor) else str(after[name]) == str(value)


def test_an_abandoned_trajectory_leaves_the_next_one_alone(tiny_model):
    """Two trajectories of one model may be interleaved: each has its own scheduler and generators."""
    expected = final(tiny_model, PROMPTS, SEEDS)
    first = trajectory(tiny_model, tiny_model.encode(PROMPTS), seeds=SEEDS, sampler=Sampler(3))
    second = trajectory(tiny_model, tiny_model.encode(PROMPTS[::-1]), seeds=[1, 2, 3], sampler=Sampler(3))
    for step, _ in zip(first, second, strict=True):
        last = step
    assert torch.equal(last.x_next, expected)


def test_first_predictions_are_those_of_the_trajectory_at_their_exact_cost(tiny_model, cost):
    """One evaluation per seed and one per prompt and seed give the first step of every trajectory, prompt-major."""
    empty = first_unconditional(tiny_model, seeds=SEEDS[:2], steps=5)
    assert cost.forward == 2
    cond = first_conditional(tiny_model, tiny_model.encode(PROMPTS), empty, steps=5, batch=4)
    assert cost.forward == 2 * (len(PROMPTS) + 1)
    texts = [p for p in PROMPTS for _ in range(2)]
    step = next(trajectory(tiny_model, tiny_model.encode(texts), seeds=SEEDS[:2] * 3, sampler=Sampler(5)))
    assert torch.equal(cond.x, step.cond.x)
    assert torch.allclose(cond.eps, step.cond.eps, atol=1e-5)
    assert torch.allclose(cond.x0, step.cond.x0, atol=1e-3)
    assert torch.allclose(empty.eps.repeat(3, 1, 1, 1), step.uncond.eps, atol=1e-5)
