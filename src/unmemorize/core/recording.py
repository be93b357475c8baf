"""What detectors read of prompts at some seeds. Each prediction is made once, whichever detectors ask for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice

import torch
from torch import Tensor

from unmemorize.core.batches import in_batches
from unmemorize.core.errors import NotApplicable, UserError
from unmemorize.core.model import Condition, DiffusionModel, Prediction, joined
from unmemorize.core.sample import (
    Sampler,
    Step,
    generators,
    joined_predictions,
    predicted,
    rows_of,
    sampling_start,
    trajectory,
)

ROWS = 64  # evaluations at once
PATHS = 32  # pictures sampled at once


def wide(x: Tensor) -> Tensor:
    """A tensor in float32, or as it is where it is wider: differences of half precision would be mostly rounding."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@dataclass(frozen=True)
class Contrast:
    """The predictions for prompts and the unconditional ones at the same states, a row a prompt and seed."""

    t: Tensor
    cond: Prediction
    uncond: Prediction

    @property
    def gap(self) -> Tensor:
        """The text-conditional magnitude, (rows,): see `Prediction.gap`."""
        return self.cond.gap(self.uncond)

    @property
    def difference(self) -> Tensor:
        """Conditional minus unconditional, in the trained output, (rows, values)."""
        return (wide(self.cond.output) - wide(self.uncond.output)).flatten(1)

    def require_signal(self, detector: str) -> None:
        """Refuse a level without signal: there the predicted noise is x, whatever the network says.

        Raises:
            NotApplicable: α is 0.
        """
        if not self.cond.alpha.all():
            raise NotApplicable(f"{detector} reads the predicted noise: at a first step of noise alone it is x itself")

    def guided(self, scale: float) -> Prediction:
        """What guidance makes of the two."""
        cond, uncond = wide(self.cond.output), wide(self.uncond.output)
        return replace(self.cond, output=uncond + scale * (cond - uncond), x=wide(self.cond.x))


def contrast_of(step: Step, detector: str) -> Contrast:
    """The two predictions of a sampling step.

    Raises:
        NotApplicable: Guidance is off, so there is no unconditional prediction along the way.
    """
    if step.uncond is None:
        raise NotApplicable(f"{detector} needs the unconditional prediction: sample with guidance above 1")
    return Contrast(step.t, step.cond, step.uncond)


def timestep_at(model: DiffusionModel, ratio: float) -> Tensor:
    """The model's timestep at a signal-to-noise ratio α/σ: a level that means the same in every family."""
    clean, noisy = 0.0, 1.0
    for _ in range(30):
        u = (clean + noisy) / 2
        alpha, sigma = model.alpha_sigma(model.timestep(torch.tensor([u])))
        if float(alpha / sigma) > ratio:
            clean = u
        else:
            noisy = u
    return model.timestep(torch.tensor([clean]))[0].to(model.device)


@dataclass(eq=False)
class Recorder:
    """A model, how pictures are drawn from it, and seeds; what does not depend on a prompt is evaluated once for all.

    Attributes:
        model: The model.
        sampler: How pictures are drawn from it.
        seeds: The seeds of every prompt.
        shared: Evaluations so far that all prompts share.
    """

    model: DiffusionModel
    sampler: Sampler
    seeds: tuple[int, ...]
    shared: int = 0
    _unconditional: dict[float, Prediction] = field(default_factory=dict, repr=False)

    @cached_property
    def empty(self) -> Condition:
        """The unconditional condition, one row."""
        return self.model.unconditional(1)

    @cached_property
    def start(self) -> tuple[Tensor, Tensor]:
        """What the denoiser is given for the seeds at the first sampling step, (seeds, c, h, w), and its timestep."""
        noise = self.model.noise(generators(self.seeds))
        return sampling_start(self.model, noise, self.sampler.steps_of(self.model))

    def unconditional(self, t: Tensor) -> Prediction:
        """The unconditional predictions for the first step's input at a timestep, (seeds, …)."""
        key = float(t)
        if key not in self._unconditional:
            x, _ = self.start
            self._unconditional[key] = predicted(self.model, x, t, self.empty.repeat(len(x)))
            self.shared += len(x)
        return self._unconditional[key]

    def recordings(self, cond: Condition) -> Iterator[Recording]:
        """Recordings of the prompts, in order, a few at a time: what they hold has to fit into memory."""
        size = max(ROWS // len(self.seeds), 1)
        for start in range(0, len(cond), size):
            yield Recording(self, cond[start : start + size])


@dataclass(frozen=True, eq=False)
class Recording:
    """Prompts at the recorder's seeds. Rows are prompt-major: all seeds of the first prompt, then of the second.

    Nothing is evaluated before a detector asks for it, and nothing has gradients.

    Attributes:
        recorder: The model, the sampler, the seeds, and what the prompts share.
        cond: The prompts, (n).
    """

    recorder: Recorder
    cond: Condition
    _steps: list[Step] = field(default_factory=list, repr=False)
    _probes: dict[tuple[float, float], Contrast] = field(default_factory=dict, repr=False)

    @property
    def model(self) -> DiffusionModel:
        """The model."""
        return self.recorder.model

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of every prompt."""
        return self.recorder.seeds

    def require_seeds_to_compare(self, method: str) -> None:
        """Refuse a method that compares seeds where there is one alone.

        Raises:
            UserError: There is.
        """
        if len(self.seeds) < 2:
            raise UserError(f"{method} compares seeds: name two or more with --seeds")

    @cached_property
    def rows(self) -> Condition:
        """The prompts, each as often as there are seeds."""
        return self.cond.repeat(len(self.seeds))

    def table(self, values: Tensor) -> Tensor:
        """Values of rows (rows, …) as (n, seeds, …), on the CPU and in float32."""
        return values.reshape(len(self.cond), len(self.seeds), *values.shape[1:]).float().cpu()

    @cached_property
    def empty(self) -> Condition:
        """The unconditional condition, for every row."""
        return self.recorder.empty.repeat(len(self.rows))

    def predict(self, x: Tensor, t: Tensor, cond: Condition) -> Prediction:
        """Predictions at states of one's own, (rows, c, h, w), for conditions of one's own."""
        return predicted(self.model, x, t, cond)

    def contrast(self, x: Tensor, t: Tensor) -> Contrast:
        """Both predictions at states of one's own, (rows, c, h, w)."""
        return Contrast(t, self.predict(x, t, self.rows), self.predict(x, t, self.empty))

    @cached_property
    def start(self) -> Contrast:
        """Both predictions at the first sampling step."""
        return self.on_noise(self.recorder.start[1])

    def on_noise(self, t: Tensor) -> Contrast:
        """Both predictions for the first step's input, which is all noise, at a timestep."""
        uncond = self.recorder.unconditional(t).repeated(len(self.cond))
        return Contrast(t, self.predict(uncond.x, t, self.rows), uncond)

    def steps(self, count: int | None = None) -> list[Step]:
        """The first `count` steps of sampling, all by default: those of an earlier call, where it took as many.

        Raises:
            UserError: Sampling has fewer.
        """
        total = self.recorder.sampler.steps_of(self.model)
        if count is not None and count > total:
            raise UserError(f"step {count}: sampling has {total} steps: name one of them")
        if count is None:
            count = len(self.model.schedule(total).timesteps)  # some schedulers evaluate twice a step
        if len(self._steps) < count:
            self._steps[:] = self._walked(count)
        return self._steps[:count]

    def _walked(self, count: int) -> list[Step]:
        """So many steps of every row's path, taken from the start: a path cannot be gone on with after a failure."""
        sampler, seeds = self.recorder.sampler, self.seeds * len(self.cond)

        def walk(part: slice) -> list[Step]:
            return list(islice(trajectory(self.model, self.rows[part], seeds=seeds[part], sampler=sampler), count))

        each = rows_of(self.model, sampler)
        paths = [steps for _, steps in in_batches(self.model, len(seeds), walk, size=PATHS, rows=each)]
        return [_joined(steps) for steps in zip(*paths, strict=True)]

    def probe(self, ratio: float, guidance: float) -> Contrast:
        """Both predictions after one DDIM jump from the first step, with guidance, to the level α/σ = `ratio`."""
        if (ratio, guidance) not in self._probes:
            jump, t = self.start.guided(guidance), timestep_at(self.model, ratio)
            alpha, sigma = self.model.alpha_sigma(t)
            x = (alpha.to(jump.x) * jump.x0 + sigma.to(jump.x) * jump.eps).to(self.start.cond.x)
            self._probes[ratio, guidance] = self.contrast(x, t)
        return self._probes[ratio, guidance]


def _joined(parts: Sequence[Step]) -> Step:
    """The same step of several paths."""
    first = parts[0]
    unconditional = [step.uncond for step in parts if step.uncond is not None]
    return replace(
        first,
        x=torch.cat([step.x for step in parts]),
        scaled=torch.cat([step.scaled for step in parts]),
        cond=joined_predictions([step.cond for step in parts]),
        uncond=joined_predictions(unconditional) if unconditional else None,
        output=torch.cat([step.output for step in parts]),
        condition=joined([step.condition for step in parts]),
        x_next=torch.cat([step.x_next for step in parts]),
    )
