"""PRSS: sample other words of a memorized prompt, guided away from what the prompt itself predicts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from unmemorize.core.bounds import Share
from unmemorize.core.errors import NotApplicable, UserError
from unmemorize.core.methods import Acts, Mitigation, Subject, method
from unmemorize.core.model import Condition, DiffusionModel, joined
from unmemorize.core.run import Progress, quiet
from unmemorize.core.sample import Sampler, StepState, predicted, sampling_start
from unmemorize.mitigate.guard import ordinary_limits


def without_each_word(prompt: str) -> list[str]:
    """The prompt without each of its words, a word at all its places; nothing for a prompt of one word."""
    words = prompt.split()
    shorter = [" ".join(other for other in words if other != word) for word in dict.fromkeys(words)]
    return [text for text in shorter if text]


def reanchored(state: StepState, own: Tensor, strength: Tensor, scale: float) -> Tensor:
    """ε_0 + s (ε − ε_0) + (w − s)(ε − ε_∅): guidance whose anchor moves to the prompt's own prediction ε_0 as s grows.

    Args:
        state: The step, ε its conditional prediction.
        own: ε_0, (n, c, h, w).
        strength: s, (n,): at 1 it is the usual guidance, at w it is away from ε_0 alone.
        scale: w, the guidance scale.
    """
    s = strength.reshape(-1, 1, 1, 1).to(own)
    words = state.cond.output
    return own + s * (words - own) + (scale - s) * (words - state.guided(0))


@dataclass(frozen=True)
class ReanchoredSampler(Sampler):
    """A sampler of other words than the prompt's, where its magnitude is over the threshold."""

    threshold: float = torch.inf
    low: float = 3.0
    high: float = 5.0
    _own: list[Condition] = field(default_factory=list, init=False, repr=False, compare=False)
    _over: list[Tensor] = field(default_factory=list, init=False, repr=False, compare=False)

    def fresh(self) -> ReanchoredSampler:
        """One that has seen no prompt."""
        return replace(self)

    def start(
        self, model: DiffusionModel, cond: Condition, noise: Tensor, seeds: Sequence[int]
    ) -> tuple[Condition, Tensor]:
        """Other words for each prompt over the threshold, and the noise as it is."""
        x, t = sampling_start(model, noise, self.steps_of(model))

        uncond = predicted(model, x, t, model.unconditional(len(x)))

        def magnitudes_at(row: int, given: Condition) -> Tensor:
            nothing = uncond[row : row + 1].repeated(len(given))
            return predicted(model, nothing.x, t, given).gap(nothing)

        over = predicted(model, x, t, cond).gap(uncond) > self.threshold
        rows = [cond[[i]] for i in range(len(cond))]
        for i in over.nonzero()[:, 0].tolist():
            texts = [] if cond.texts is None else without_each_word(cond.texts[i])
            if texts:
                candidates = model.encode(texts)
                values = magnitudes_at(i, candidates)
                low_enough = (values <= self.threshold).nonzero()[:, 0]
                rows[i] = candidates[[int(low_enough[0] if len(low_enough) else values.argmin())]]
        self._own.append(cond)
        self._over.append(over)
        return joined(rows), noise

    def guide(self, state: StepState) -> Tensor:
        """The usual guidance, or away from the prompt's own prediction where the words say too much as well."""
        (own,), (over,) = self._own, self._over
        assert state.uncond is not None  # or there were no guidance
        magnitude = state.cond.gap(state.uncond) / self.threshold
        acts = over & (magnitude > self.low)
        if not acts.any():
            return state.output
        scale = self.guidance_of(state.model)
        strength = 1 + (scale - 1) * ((magnitude - self.low) / (self.high - self.low)).clamp(0, 1)
        changed = reanchored(state, state.predict(own).output, strength, scale)
        return torch.where(acts[:, None, None, None], changed, state.output)


@method(
    "prompt-reanchoring",
    paper="Chen et al. 2025 (PRSS)",
    cost="2 evaluations a word, and 1 more at each step at which it acts, for memorized prompts",
    needs=("unconditional", "ordinary"),
)
@dataclass(frozen=True)
class PromptReanchoring(Mitigation):
    """Sample a memorized prompt without one of its words, guided away from the prompt where it still says too much.

    Of the prompt without each word the first is taken whose magnitude at the first step is at most the threshold, else
    the one with the lowest. Where its magnitude m at a step exceeds `low` thresholds, the guided prediction is
    ε_0 + s (ε − ε_0) + (w − s)(ε − ε_∅), ε_0 the prompt's own, w the guidance scale, and s rising with m from 1 to w.

    Paper: Chen et al. 2025 (PRSS: thresholds 1 at the first step, 3 and 5 later).
    Differs: words are left out instead of paraphrased by a language model; the norm is not masked; thresholds are
    multiples of one that ordinary prompts give. Prompts of one word keep it, and are guided away from nothing.

    Attributes:
        threshold: The magnitude at the first step above which it acts; from ordinary prompts by default.
        low: The magnitude, in thresholds, above which the anchor moves at a step.
        high: The magnitude, in thresholds, at which it has moved whole.
        false_alarms: The share of ordinary prompts that may be acted on.
    """

    acts: ClassVar[Acts] = "condition"

    threshold: float | None = None
    low: float = 3.0
    high: float = 5.0
    false_alarms: Share = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high:
            raise ValueError(f"low={self.low}, high={self.high}: name a low one and a higher one")

    def fitted(
        self,
        subject: Subject,
        *,
        prompts: Condition | None = None,
        ordinary: Condition | None = None,
        pictures: Tensor | None = None,
        seeds: Sequence[int] = (0,),
        progress: Progress = quiet,
    ) -> PromptReanchoring:
        """With the threshold from ordinary prompts, as the guard takes it.

        Raises:
            UserError: There are no ordinary prompts.
        """
        if self.threshold is not None:
            return self
        limits = ordinary_limits(self.name, subject, ordinary, seeds, self.false_alarms)
        return replace(self, threshold=limits.threshold)

    @contextmanager
    def applied(self, subject: Subject) -> Iterator[Subject]:
        """The subject, drawn from with other words.

        Raises:
            NotApplicable: Guidance is off.
            UserError: The threshold is not known yet.
        """
        if subject.guidance <= 1:
            raise NotApplicable("guidance is off: there is nothing to change about it")
        if self.threshold is None:
            raise UserError(f"{self.name} has no threshold yet: fit it on ordinary prompts")
        usual = subject.sampler
        yield replace(
            subject, sampler=ReanchoredSampler(usual.steps, usual.guidance, self.threshold, self.low, self.high)
        )
