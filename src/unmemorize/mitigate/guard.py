"""The guard: move a prompt's embedding, at the first sampling step, until it says no more than an ordinary one does."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from unmemorize.core.batches import in_batches
from unmemorize.core.bounds import Count, Share
from unmemorize.core.errors import UserError
from unmemorize.core.hooks import frozen
from unmemorize.core.methods import Acts, Mitigation, Subject, method
from unmemorize.core.model import Condition, DiffusionModel, Prediction
from unmemorize.core.run import Progress, quiet
from unmemorize.core.sample import Sampler, first_unconditional, sampling_start
from unmemorize.metrics.calibrate import conformal_threshold

# The target is a score that few ordinary prompts stay under: brought down to their median, most copies are still made.
LOW_SCORE = 0.05
ROWS = 64  # evaluations at once


@dataclass(frozen=True)
class Limits:
    """The magnitude above which a picture counts as memorized, and the one it is then brought under."""

    threshold: float
    target: float


def limits_of(ordinary: Sequence[float], *, false_alarms: float = 0.01, under: float = LOW_SCORE) -> Limits:
    """Limits from the magnitudes of ordinary prompts: the share of them that may be acted on, and under the target.

    Raises:
        NotApplicable: There are too few for so small a share.
    """
    threshold = conformal_threshold(ordinary, false_alarms=false_alarms)
    return Limits(threshold, float(np.quantile(ordinary, under)))


@dataclass(frozen=True)
class Lowered:
    """Changed embeddings (n, tokens, width), and the magnitudes before, between and after the updates, (≥ 1, n)."""

    embeds: Tensor
    trace: Tensor

    @property
    def before(self) -> Tensor:
        """Every picture's magnitude under the prompt, (n,)."""
        return self.trace[0]

    @property
    def after(self) -> Tensor:
        """Every picture's magnitude under its changed embedding, (n,)."""
        return self.trace[-1]


def lower_magnitude(
    magnitude: Callable[[Tensor], Tensor],
    embeds: Tensor,
    *,
    target: float,
    lr: float = 0.05,
    iterations: int = 10,
) -> Lowered:
    """Descend each picture's magnitude until it is at most `target`, with AdamW on its own copy of the embedding.

    The first token's embedding stays what it is: in CLIP and Gemma it begins every prompt. So does the pooled vector of
    families that read one. Every row is optimised by itself: the result does not depend on how many pictures are made
    together.

    Paper: Wen et al. 2024, section 4.1 (learning rate 0.05, at most 10 updates).
    Differs: the target is per picture. The public code compares one norm over the batch with it: its target 3 for four
    pictures is 1.5 here.

    Args:
        magnitude: The magnitude at the first step for embeddings of this shape, (n,), differentiable.
        embeds: One row a picture, (n, tokens, width).
        target: The magnitude to get under.
        lr: Learning rate.
        iterations: The largest number of updates.
    """
    moving = embeds.detach().float().clone().requires_grad_()
    optimizer = torch.optim.AdamW([moving], lr=lr)
    lowered = embeds.detach().clone()
    active = torch.ones(len(embeds), dtype=torch.bool)
    trace: list[Tensor] = []
    while True:
        with torch.enable_grad():
            value = magnitude(moving.to(embeds.dtype))
            total = value.sum()
        trace.append(torch.where(active, value.detach().cpu(), trace[-1] if trace else torch.nan))
        if len(trace) > 1:  # a row that needs no update goes out in the very bits that came in
            lowered[active] = moving.detach()[active].to(lowered)
        active &= trace[-1] > target
        if len(trace) > iterations or not active.any():
            return Lowered(lowered, torch.stack(trace))
        (moving.grad,) = torch.autograd.grad(total, moving)
        optimizer.step()
        with torch.no_grad():
            moving[:, 0] = embeds[:, 0]  # from gradient and weight decay alike


def lower_at_start(
    model: DiffusionModel, cond: Condition, empty: Prediction, t: Tensor, *, target: float, iterations: int = 10
) -> Lowered:
    """`lower_magnitude` at the first sampling step; `empty` is the unconditional prediction there, a row a picture."""

    def magnitude(embeds: Tensor) -> Tensor:
        return model.predict(empty.x, t, cond.with_embeds(embeds)).gap(empty)

    with frozen(model.denoiser):
        return lower_magnitude(magnitude, cond.embeds, target=target, iterations=iterations)


@dataclass(frozen=True)
class GuardedSampler(Sampler):
    """A sampler that looks at the first step, and lowers the magnitude of what is over the threshold to the target."""

    limits: Limits = Limits(math.inf, 0.0)
    iterations: int = 10

    def start(
        self, model: DiffusionModel, cond: Condition, noise: Tensor, seeds: Sequence[int]
    ) -> tuple[Condition, Tensor]:
        """The embeddings, changed where their magnitude is over the threshold, and the noise as it is."""
        x, t = sampling_start(model, noise, self.steps_of(model))
        with torch.no_grad():
            empty = model.predict(x, t, model.unconditional(len(x)))
            over = (model.predict(x, t, cond).gap(empty) > self.limits.threshold).nonzero()[:, 0]
        if not len(over):
            return cond, noise
        chosen = Prediction(empty.output[over], empty.kind, empty.x[over], empty.alpha, empty.sigma)
        lowered = lower_at_start(model, cond[over], chosen, t, target=self.limits.target, iterations=self.iterations)
        return cond.with_embeds(cond.embeds.index_copy(0, over, lowered.embeds)), noise


@method(
    "guard",
    paper="Wen et al. 2024, section 4.1",
    cost="nothing for ordinary prompts in a pipeline; up to 10 evaluations with gradient for others",
    needs=("gradients", "unconditional", "ordinary"),
)
@dataclass(frozen=True)
class Guard(Mitigation):
    """Lower the magnitude of memorized prompts at the first sampling step, by their embeddings.

    Its limits come from the scores of ordinary prompts. A share of false alarms that so few prompts cannot promise is
    raised to the least that they can, 1 / (n + 1).

    Paper: Wen et al. 2024, section 4.1.
    Differs: it acts above a threshold only, picture by picture.

    Attributes:
        threshold: The magnitude above which it acts; from ordinary prompts by default.
        target: The magnitude it brings a picture under; from ordinary prompts by default.
        false_alarms: The share of ordinary prompts that may be acted on.
        under: The share of ordinary prompts whose magnitude is under the target.
        iterations: Updates of an embedding, at most.
    """

    acts: ClassVar[Acts] = "condition"

    threshold: float | None = None
    target: float | None = None
    false_alarms: Share = 0.01
    under: Share = LOW_SCORE
    iterations: Count = 10

    def __post_init__(self) -> None:
        if not 0 <= self.under <= 1:
            raise ValueError(f"under={self.under}: name a share between 0 and 1")
        if (self.threshold is None) != (self.target is None):
            raise ValueError("threshold and target come together: name both, or neither to have them calibrated")

    def fitted(
        self,
        subject: Subject,
        *,
        prompts: Condition | None = None,
        ordinary: Condition | None = None,
        pictures: Tensor | None = None,
        seeds: Sequence[int] = (0,),
        progress: Progress = quiet,
    ) -> Guard:
        """With limits from ordinary prompts, each at one of the seeds: pooled, a few prompts would pass for many.

        Raises:
            UserError: There are no ordinary prompts.
        """
        if self.threshold is not None:
            return self
        limits = ordinary_limits("the guard", subject, ordinary, seeds, self.false_alarms, self.under)
        return replace(self, threshold=limits.threshold, target=limits.target)

    @contextmanager
    def applied(self, subject: Subject) -> Iterator[Subject]:
        """The subject, drawn from with the guard.

        Raises:
            UserError: The limits are not known yet.
        """
        if self.threshold is None or self.target is None:
            raise UserError("the guard has no limits yet: fit it on ordinary prompts")
        limits = Limits(self.threshold, self.target)
        sampler = GuardedSampler(subject.sampler.steps, subject.sampler.guidance, limits, self.iterations)
        yield replace(subject, sampler=sampler)


def ordinary_limits(
    name: str,
    subject: Subject,
    ordinary: Condition | None,
    seeds: Sequence[int],
    false_alarms: float,
    under: float = LOW_SCORE,
) -> Limits:
    """Limits from ordinary prompts, for a mitigation of that name; a share of them that can be met may be acted on.

    Raises:
        UserError: There are no ordinary prompts.
    """
    if ordinary is None or not len(ordinary):
        raise UserError(f"{name} is calibrated on ordinary prompts: name a file with --ordinary")
    scores = magnitudes(subject, ordinary, seeds)
    return limits_of(scores, false_alarms=max(false_alarms, 1 / (len(scores) + 1)), under=under)


def magnitudes(subject: Subject, cond: Condition, seeds: Sequence[int]) -> list[float]:
    """Each prompt's magnitude at the first sampling step and one of the seeds, in turn."""
    model, steps = subject.model, subject.steps
    empty = first_unconditional(model, seeds=seeds, steps=steps)
    t = model.schedule(steps).timesteps[0]

    def measured(part: slice) -> list[float]:
        seed = torch.arange(len(cond), device=empty.x.device)[part] % len(seeds)
        uncond = Prediction(empty.output[seed], empty.kind, empty.x[seed], empty.alpha, empty.sigma)
        gaps: list[float] = model.predict(uncond.x, t, cond[part]).gap(uncond).tolist()
        return gaps

    values: list[float] = []
    with torch.no_grad():
        for _, of_part in in_batches(model, len(cond), measured, size=ROWS):
            values += of_part
    return values
