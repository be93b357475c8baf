"""A cheap detector for all prompts, and a dear one for those that it leaves."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unmemorize.core.methods import Detector, method, parse
from unmemorize.core.recording import Recording
from unmemorize.core.results import Scores


@dataclass(frozen=True)
class Fit:
    """What a cascade takes from ordinary prompts: the screen's value that a prompt has to exceed, and the detector."""

    bar: float
    then: Detector


@method(
    "cascade",
    paper="ours",
    cost="the screen's evaluations, and the other detector's for the prompts that pass; both for ordinary prompts",
    needs=("unconditional", "ordinary"),
)
@dataclass(frozen=True)
class Cascade(Detector):
    """The score of a dear detector for the prompts that pass a cheap one, above the cheap one's for all others.

    A prompt passes where the screen's mean over seeds exceeds that of all but a share of ordinary prompts. The score of
    the others is the screen's minus that value, so that its mean is 0 or less. That of the dear detector is moved to a
    mean of x + √(x² + 1), x its own, which is positive and keeps the order. Before it is fitted all prompts pass.

    Attributes:
        screen: The cheap detector; one that takes nothing from ordinary prompts.
        then: The dear one.
        share: The share of ordinary prompts that pass.
    """

    screen: str = "noise-similarity"
    then: str = "dsm"
    share: float = 0.05
    fit: Fit | None = None

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"share={self.share}: name a share between 0 and 1")
        if "ordinary" in self._screen.needs:
            raise ValueError(f"screen={self.screen}: takes something from ordinary prompts: name one that does not")
        parse("detector", self.then)

    @property
    def _screen(self) -> Detector:
        screen: Detector = parse("detector", self.screen)
        return screen

    def score_recording(self, recording: Recording) -> Scores:
        """Score every prompt at every seed; `columns` holds the screen's score."""
        screened = self._screen.score_recording(recording).by_seed
        if self.fit is None:
            scores = parse("detector", self.then).score_recording(recording)
            return Scores(scores.by_seed, columns={**scores.columns, "screen": screened})
        passes = screened.mean(dim=1) > self.fit.bar
        by_seed = screened - self.fit.bar
        if passes.any():
            rest = Recording(recording.recorder, recording.cond[passes.nonzero()[:, 0]])
            by_seed[passes] = moved(self.fit.then.score_recording(rest).by_seed)
        return Scores(by_seed, columns={"screen": screened})

    def fitted(self, ordinary: Scores) -> Cascade:
        """With the screen's quantile of ordinary prompts, and with the other detector fitted to them."""
        bar = ordinary.columns["screen"].mean(dim=1).quantile(1 - self.share)
        return replace(self, fit=Fit(float(bar), parse("detector", self.then).fitted(ordinary)))


def moved(by_seed: Tensor) -> Tensor:
    """Scores (n, seeds) whose means x are moved to x + √(x² + 1)."""
    mean = by_seed.double().mean(dim=1, keepdim=True)
    return (by_seed + torch.sqrt(mean.square() + 1)).to(by_seed)
