"""What explanations by token share: the states they are computed at, and how tokens become words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import torch
from scipy.stats import spearmanr
from torch import Tensor

from unmemorize.core.bounds import SamplingSteps
from unmemorize.core.errors import NotApplicable, UserError
from unmemorize.core.methods import Subject
from unmemorize.core.model import Condition, DiffusionModel, Prediction
from unmemorize.core.results import Explanation
from unmemorize.core.sample import first_unconditional, trajectory
from unmemorize.explain.words import words_of

Pool = Literal["sum", "max", "mean"]
POOLS: dict[Pool, Callable[[Tensor], Tensor]] = {"sum": torch.sum, "max": torch.amax, "mean": torch.mean}


@dataclass(frozen=True)
class Window:
    """Which sampling steps are read, and how the tokens of a word are put together.

    Attributes:
        first: The first sampling step that is read, from 0.
        last: The step before which reading ends.
        pool: How the tokens of a word are put together: sum, max or mean.
    """

    first: SamplingSteps = 0
    last: SamplingSteps = 1
    pool: Pool = "sum"

    def __post_init__(self) -> None:
        if not 0 <= self.first < self.last:
            raise ValueError(f"steps {self.first} to {self.last}: name a first step and a later last one")

    def visited(self, subject: Subject, cond: Condition, seeds: Sequence[int]) -> Iterator[tuple[Tensor, Prediction]]:
        """The timesteps that are read, each with the unconditional prediction, which holds the state there.

        Raises:
            NotApplicable: Guidance is off, so there is no unconditional prediction along the way.
            UserError: The steps to read lie beyond the sampling steps.
        """
        model = subject.model
        if self.last > subject.steps:
            raise UserError(f"last={self.last}: sampling has {subject.steps} steps: name one of them")
        if (self.first, self.last) == (0, 1):
            timestep = model.schedule(subject.steps).timesteps[0]
            yield timestep, first_unconditional(model, seeds=seeds, steps=subject.steps)
            return
        for step in islice(trajectory(model, cond, seeds=seeds, sampler=subject.sampler), self.first, self.last):
            if step.uncond is None:
                raise NotApplicable(
                    "word significance needs the unconditional prediction: sample with guidance above 1"
                )
            yield step.t, step.uncond


def by_word(model: DiffusionModel, prompt: str, tokens: Tensor, *, pool: Pool, evaluations: int) -> Explanation:
    """The values of a prompt's tokens, (tokens,), pooled to those of its words.

    Words beyond the model's longest prompt count nothing. Begin, end and padding tokens are reported apart: padding can
    carry much of a memory.
    """
    cond, words = model.encode([prompt]), words_of(prompt)
    starts = torch.tensor([start if stop > start else -1 for start, stop in model.spans(prompt)])
    values = []
    for start, stop in words:
        inside = (starts >= start) & (starts < stop)
        values.append(float(POOLS[pool](tokens[inside])) if inside.any() else 0.0)
    return Explanation(prompt, tuple(words), tuple(values), _special(tokens, starts, cond), evaluations)


def _special(tokens: Tensor, starts: Tensor, cond: Condition) -> dict[str, float]:
    mask = torch.ones(len(tokens)) if cond.mask is None else cond.mask[0].cpu()
    real, used = starts >= 0, mask.bool()
    first = torch.arange(len(tokens)) == 0
    groups = {"begin": ~real & used & first, "end": ~real & used & ~first, "padding": ~real & ~used}
    return {name: float(tokens[group].sum()) for name, group in groups.items()}


def rank_agreement(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation, or None where either side has fewer than two distinct values."""
    if min(len(set(first)), len(set(second))) < 2:
        return None
    return float(spearmanr(first, second).statistic)
