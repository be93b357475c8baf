"""The sampling loop. Nothing else in this package steps a scheduler."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unmemorize.core.model import Condition, DiffusionModel, Prediction


@dataclass(frozen=True)
class Step:
    """One sampling step: state `x` at timestep `t`, what was predicted there, and the next state.

    `uncond` is None where guidance is off. All tensors are (n, c, h, w).
    """

    index: int
    t: Tensor
    x: Tensor
    cond: Prediction
    uncond: Prediction | None
    x_next: Tensor


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One CPU generator per seed."""
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def trajectory(
    model: DiffusionModel,
    cond: Condition,
    *,
    seeds: Sequence[int],
    steps: int | None = None,
    guidance: float | None = None,
    uncond: Condition | None = None,
    grad: bool = False,
) -> Iterator[Step]:
    """Sample one image per row of `cond` and yield every step; the last step's `x_next` is the final latent.

    Equals `pipe(prompts, generator=[…])` bit for bit, with one generator per image. Guidance is the family's own, and
    off at `guidance` ≤ 1, as in diffusers.

    Args:
        model: The model to sample from.
        cond: One row per image.
        seeds: One per row: its initial noise, and the noise of a stochastic scheduler.
        steps: Number of sampling steps; the family's own by default.
        guidance: Guidance scale; the family's own by default.
        uncond: What guidance moves away from; what the family moves away from by default.
        grad: Record gradients.

    Raises:
        ValueError: `seeds` and `cond` differ in length.
    """
    if len(seeds) != len(cond):
        raise ValueError(f"expected one seed per prompt, got {len(seeds)} seeds for {len(cond)} prompts")
    scale = model.guidance if guidance is None else guidance
    if scale > 1 and uncond is None:
        uncond = model.unconditional(len(cond))
    streams = generators(seeds)
    schedule = model.schedule(model.steps if steps is None else steps)
    x = model.noise(streams) * schedule.initial_scale
    for index, t in enumerate(schedule.timesteps):
        with torch.set_grad_enabled(grad):
            scaled = schedule.scale(x, t)
            if scale > 1 and uncond is not None:
                guided = model.guided(scaled, t, cond, uncond, scale)
                conditional, unconditional, output = guided.cond, guided.uncond, guided.output
            else:
                conditional, unconditional = model.predict(scaled, t, cond), None
                output = conditional.output
            x_next = schedule.step(output, t, x, streams)
        yield Step(index, t, x, conditional, unconditional, x_next)
        x = x_next


def sampling_evaluations(model: DiffusionModel, steps: int, guidance: float | None) -> int:
    """Evaluations that sampling one picture takes: two a step under guidance."""
    scale = model.guidance if guidance is None else guidance
    return len(model.schedule(steps).timesteps) * (2 if scale > 1 else 1)


def first_unconditional(model: DiffusionModel, *, seeds: Sequence[int], steps: int = 50) -> Prediction:
    """The unconditional prediction at the first sampling step: it depends on the seed alone, (seeds, …)."""
    schedule = model.schedule(steps)
    with torch.no_grad():
        x = schedule.scale(model.noise(generators(seeds)) * schedule.initial_scale, schedule.timesteps[0])
        return model.predict(x, schedule.timesteps[0], model.unconditional(len(seeds)))


def first_conditional(
    model: DiffusionModel, cond: Condition, empty: Prediction, *, steps: int = 50, batch: int = 64
) -> Prediction:
    """Predictions at the first sampling step for every prompt at every seed of `empty`.

    Rows are prompt-major: all seeds of the first prompt, then of the second.
    """
    t = model.schedule(steps).timesteps[0]
    rows = torch.arange(len(cond) * len(empty.x), device=empty.x.device)
    prompt, seed = rows // len(empty.x), rows % len(empty.x)
    with torch.no_grad():
        parts = [model.predict(empty.x[seed[r]], t, cond[prompt[r]]).output for r in torch.split(rows, batch)]
    return Prediction(torch.cat(parts), empty.kind, empty.x[seed], empty.alpha, empty.sigma)


def generate(
    model: DiffusionModel,
    cond: Condition,
    *,
    seeds: Sequence[int],
    steps: int | None = None,
    guidance: float | None = None,
) -> Tensor:
    """Sample and decode: images (n, 3, H, W) in [0, 1]."""
    for step in trajectory(model, cond, seeds=seeds, steps=steps, guidance=guidance):
        x = step.x_next
    with torch.no_grad():
        return model.decode(x)
