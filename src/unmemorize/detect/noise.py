"""The magnitude of the text-conditional prediction, in the trained output (the noise, in Stable Diffusion)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from unmemorize.core.batches import in_batches
from unmemorize.core.errors import NotApplicable, UserError
from unmemorize.core.methods import Detector, Subject, method
from unmemorize.core.model import Condition, Prediction
from unmemorize.core.results import Scores
from unmemorize.core.sample import Step, first_conditional, first_unconditional, rows_of, trajectory

ROWS = 64  # evaluations at once
PATHS = 32  # pictures sampled at once


@method(
    "noise-gap",
    paper="Wen et al. 2024, section 3.2",
    cost="1 evaluation a prompt and seed at the first step; 2 for every step up to the last that is read",
    needs=("unconditional",),
)
@dataclass(frozen=True)
class NoiseGap(Detector):
    """How far the prediction for a prompt is from the unconditional one, averaged over sampling steps.

    Paper: Wen et al. 2024 average over all 50 steps.
    Differs: every prompt sees the same seeds, so that scores of two prompts differ by the prompts alone; one norm a
    picture, not one over the batch.

    Attributes:
        first: The first sampling step that is read, from 0.
        last: The step before which reading ends.
    """

    first: int = 0
    last: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.first < self.last:
            raise ValueError(f"steps {self.first} to {self.last}: name a first step and a later last one")

    def score(self, subject: Subject, cond: Condition, *, seeds: Sequence[int]) -> Scores:
        """Score every prompt at every seed; `columns` holds both norms by step, (n, seeds, steps).

        Raises:
            NotApplicable: Guidance is off, so there is no unconditional prediction along the way.
            UserError: The steps to read lie beyond the sampling steps.
        """
        return self.ready(subject, seeds=seeds)(cond)

    def ready(self, subject: Subject, *, seeds: Sequence[int]) -> Callable[[Condition], Scores]:
        """`score` for many batches of prompts: at the first step they share the unconditional predictions."""
        if self.last > subject.steps:
            raise UserError(f"noise-gap:last={self.last}: sampling has {subject.steps} steps: name one of them")
        if (self.first, self.last) == (0, 1):
            empty = first_unconditional(subject.model, seeds=seeds, steps=subject.steps)
            return partial(self._at_start, subject, empty)
        return partial(self._along, subject, tuple(seeds))

    def _at_start(self, subject: Subject, empty: Prediction, cond: Condition) -> Scores:
        model = subject.model
        with model.counted() as cost:
            prediction = first_conditional(model, cond, empty, steps=subject.steps, batch=ROWS)
        uncond = empty.repeated(len(cond))
        shape = (len(cond), len(empty.x), 1)
        return _scores(prediction.gap(uncond).reshape(shape), _norm(uncond).reshape(shape), cost.forward)

    def _along(self, subject: Subject, seeds: Sequence[int], cond: Condition) -> Scores:
        model = subject.model
        rows = torch.arange(len(cond) * len(seeds))
        gaps, norms = [], []

        def read(part: slice) -> tuple[Tensor, Tensor]:
            chosen = [seeds[i] for i in (rows[part] % len(seeds)).tolist()]
            path = trajectory(model, cond[rows[part] // len(seeds)], seeds=chosen, sampler=subject.sampler)
            steps = list(islice(path, self.first, self.last))
            gap = torch.stack([step.cond.gap(_uncond(step)) for step in steps], dim=1)
            norm = torch.stack([_norm(_uncond(step)) for step in steps], dim=1)
            return gap, norm

        with model.counted() as cost:
            for _, (gap, norm) in in_batches(model, len(rows), read, size=PATHS, rows=rows_of(model, subject.sampler)):
                gaps.append(gap)
                norms.append(norm)
        shape = (len(cond), len(seeds), -1)
        return _scores(torch.cat(gaps).reshape(shape), torch.cat(norms).reshape(shape), cost.forward)


def _scores(gaps: Tensor, norms: Tensor, evaluations: int) -> Scores:
    gaps, norms = gaps.cpu(), norms.cpu()
    return Scores(gaps.mean(dim=2), evaluations, {"text_norm": gaps, "uncond_norm": norms})


def _uncond(step: Step) -> Prediction:
    if step.uncond is None:
        raise NotApplicable("noise-gap needs the unconditional prediction: sample with guidance above 1")
    return step.uncond


def _norm(prediction: Prediction) -> Tensor:
    norms: Tensor = prediction.output.float().flatten(1).norm(dim=1)
    return norms
