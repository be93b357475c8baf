"""The sampling loop. Nothing else in this package steps a scheduler."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from unmemorize.core.batches import decoded, in_batches
from unmemorize.core.errors import NotApplicable
from unmemorize.core.model import Condition, DiffusionModel, Prediction

ROWS = 16  # pictures that are sampled together, where nothing else is asked for
FIRST = 64  # rows that are evaluated together at one timestep


@dataclass(frozen=True)
class StepState:
    """A sampling step before the scheduler takes it: state `x` at timestep `t`, and what was predicted there.

    Attributes:
        index: The number of the step, from 0.
        t: The timestep.
        x: The sampler's state, (n, c, h, w).
        scaled: What the denoiser was given, (n, c, h, w).
        cond: The prediction for the prompts.
        uncond: The unconditional prediction; None where guidance is off.
        output: What the family's guidance makes of the two, (n, c, h, w).
        condition: What `cond` is the prediction for, a row a picture.
        model: The model.
    """

    index: int
    t: Tensor
    x: Tensor
    scaled: Tensor = field(repr=False)
    cond: Prediction
    uncond: Prediction | None
    output: Tensor = field(repr=False)
    condition: Condition = field(repr=False)
    model: DiffusionModel = field(repr=False)

    def guided(self, scale: float | Tensor) -> Tensor:
        """What guidance at another scale, a number or (n, 1, 1, 1), makes of the two, (n, c, h, w); 0: `uncond` alone.

        Raises:
            NotApplicable: Guidance is off.
        """
        if self.uncond is None:
            raise NotApplicable("guidance is off, so there is no unconditional prediction")
        return self.uncond.output + scale * (self.cond.output - self.uncond.output)

    def predict(self, cond: Condition) -> Prediction:
        """The prediction for other conditions at the same state, one row of them a picture."""
        return self.model.predict(self.scaled, self.t, cond)


@dataclass(frozen=True)
class Step(StepState):
    """A sampling step with the state after it, `x_next` (n, c, h, w)."""

    x_next: Tensor


@dataclass(frozen=True)
class Sampler:
    """How pictures are drawn from a model: steps, guidance, and three places where a mitigation may act.

    The hooks change nothing; a mitigation that acts on sampling is a subclass that replaces one of them.

    Attributes:
        steps: Sampling steps; None: the family's own.
        guidance: Guidance scale; None: the family's own.
    """

    steps: int | None = None
    guidance: float | None = None

    def fresh(self) -> Sampler:
        """The sampler for one trajectory: another one where something is carried from step to step."""
        return self

    def start(
        self, model: DiffusionModel, cond: Condition, noise: Tensor, seeds: Sequence[int]
    ) -> tuple[Condition, Tensor]:
        """The prompts and the standard normal noise (n, c, h, w) that sampling starts from, one seed a row."""
        return cond, noise

    def guide(self, state: StepState) -> Tensor:
        """What the scheduler is given, (n, c, h, w), from the predictions of a step."""
        return state.output

    def after(self, state: StepState, x_next: Tensor) -> Tensor:
        """The state that the next step starts from, (n, c, h, w)."""
        return x_next

    def steps_of(self, model: DiffusionModel) -> int:
        """The number of sampling steps with this model."""
        return model.steps if self.steps is None else self.steps

    def guidance_of(self, model: DiffusionModel) -> float:
        """The guidance scale with this model."""
        return model.guidance if self.guidance is None else self.guidance


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One CPU generator per seed."""
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def normal(like: Tensor, seeds: Sequence[int]) -> Tensor:
    """Standard normal numbers of the shape of `like`, one tensor a seed: (seeds, *shape)."""
    return torch.stack([torch.randn(like.shape, generator=generator) for generator in generators(seeds)]).to(like)


def trajectory(
    model: DiffusionModel,
    cond: Condition,
    *,
    seeds: Sequence[int],
    sampler: Sampler = Sampler(),
    uncond: Condition | None = None,
    grad: bool = False,
) -> Iterator[Step]:
    """Sample one image per row of `cond` and yield every step; the last step's `x_next` is the final latent.

    Equals `pipe(prompts, generator=[…])` bit for bit, with one generator per image. Guidance is off at a scale of 1 or
    less, as in diffusers.

    Args:
        model: The model to sample from.
        cond: One row per image.
        seeds: One per row: its initial noise, and the noise of a stochastic scheduler.
        sampler: Steps, guidance, and what acts on the way.
        uncond: What guidance moves away from; what the family moves away from by default.
        grad: Record gradients.

    Raises:
        ValueError: `seeds` and `cond` differ in length.
    """
    if len(seeds) != len(cond):
        raise ValueError(f"expected one seed per prompt, got {len(seeds)} seeds for {len(cond)} prompts")
    sampler = sampler.fresh()
    scale = sampler.guidance_of(model)
    if scale > 1 and uncond is None:
        uncond = model.unconditional(len(cond))
    streams = generators(seeds)
    schedule = model.schedule(sampler.steps_of(model))
    cond, noise = sampler.start(model, cond, model.noise(streams), seeds)
    x = noise * schedule.initial_scale
    for index, t in enumerate(schedule.timesteps):
        with torch.set_grad_enabled(grad):
            scaled = schedule.scale(x, t)
            if scale > 1 and uncond is not None:
                guided = model.guided(scaled, t, cond, uncond, scale)
                conditional, unconditional, output = guided.cond, guided.uncond, guided.output
            else:
                conditional, unconditional = model.predict(scaled, t, cond), None
                output = conditional.output
            state = StepState(index, t, x, scaled, conditional, unconditional, output, cond, model)
            x_next = schedule.step(sampler.guide(state), t, x, streams)
            x_next = sampler.after(state, x_next)
        yield Step(index, t, x, scaled, conditional, unconditional, output, cond, model, x_next)
        x = x_next


def sampling_evaluations(model: DiffusionModel, sampler: Sampler) -> int:
    """Evaluations that sampling one picture takes: two a step under guidance."""
    return len(model.schedule(sampler.steps_of(model)).timesteps) * rows_of(model, sampler)


def rows_of(model: DiffusionModel, sampler: Sampler) -> int:
    """Rows of the denoiser that a picture takes at a sampling step: two under guidance."""
    return 2 if sampler.guidance_of(model) > 1 else 1


def sampling_start(model: DiffusionModel, noise: Tensor, steps: int | None = None) -> tuple[Tensor, Tensor]:
    """What the denoiser is given at the first of `steps` sampling steps, (n, c, h, w), and its timestep."""
    schedule = model.schedule(model.steps if steps is None else steps)
    t = schedule.timesteps[0]
    return schedule.scale(noise * schedule.initial_scale, t), t


def predicted(model: DiffusionModel, x: Tensor, t: Tensor, cond: Condition) -> Prediction:
    """Predictions at one timestep, without gradients, however many rows there are."""
    with torch.no_grad():
        parts = in_batches(model, len(x), lambda part: model.predict(x[part], t, cond[part]), size=FIRST)
        return joined_predictions([prediction for _, prediction in parts])


def joined_predictions(parts: Sequence[Prediction]) -> Prediction:
    """Predictions at one timestep, and so of one α and one σ, as one."""
    output, x = torch.cat([part.output for part in parts]), torch.cat([part.x for part in parts])
    return replace(parts[0], output=output, x=x)


def first_unconditional(model: DiffusionModel, *, seeds: Sequence[int], steps: int | None = None) -> Prediction:
    """The unconditional prediction at the first sampling step: it depends on the seed alone, (seeds, …)."""
    x, t = sampling_start(model, model.noise(generators(seeds)), steps)
    return predicted(model, x, t, model.unconditional(len(seeds)))


def first_conditional(
    model: DiffusionModel, cond: Condition, empty: Prediction, *, steps: int | None = None, batch: int = FIRST
) -> Prediction:
    """Predictions at the first sampling step for every prompt at every seed of `empty`.

    Rows are prompt-major: all seeds of the first prompt, then of the second.
    """
    t = model.schedule(model.steps if steps is None else steps).timesteps[0]
    rows = torch.arange(len(cond) * len(empty.x), device=empty.x.device)
    prompt, seed = rows // len(empty.x), rows % len(empty.x)

    def output(part: slice) -> Tensor:
        r = rows[part]
        return model.predict(empty.x[seed[r]], t, cond[prompt[r]]).output

    with torch.no_grad():
        outputs = [of_part for _, of_part in in_batches(model, len(rows), output, size=batch)]
    return Prediction(torch.cat(outputs), empty.kind, empty.x[seed], empty.alpha, empty.sigma)


def sample(
    model: DiffusionModel,
    cond: Condition,
    *,
    seeds: Sequence[int],
    sampler: Sampler = Sampler(),
    batch: int = ROWS,
) -> Tensor:
    """The final latents of one image per row of `cond`, (n, c, h, w), `batch` of them at a time.

    Raises:
        ValueError: `seeds` and `cond` differ in length, or there are none.
    """
    if len(seeds) != len(cond) or not len(cond):
        raise ValueError(f"expected one seed per prompt, got {len(seeds)} seeds for {len(cond)} prompts")

    def sampled(part: slice) -> Tensor:
        for step in trajectory(model, cond[part], seeds=seeds[part], sampler=sampler):
            last = step.x_next
        return last

    halves = rows_of(model, sampler)
    return torch.cat([last for _, last in in_batches(model, len(cond), sampled, size=batch, rows=halves)])


def generate(
    model: DiffusionModel,
    cond: Condition,
    *,
    seeds: Sequence[int],
    sampler: Sampler = Sampler(),
    batch: int = ROWS,
) -> Tensor:
    """Sample and decode: images (n, 3, H, W) in [0, 1], `batch` of them at a time.

    Raises:
        ValueError: `seeds` and `cond` differ in length, or there are none.
    """
    return decoded(model, sample(model, cond, seeds=seeds, sampler=sampler, batch=batch), size=batch)
