"""A method of each kind, as another package would write them: one file, which knows nothing but `unmemorize.core`."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch

from unmemorize.core.methods import (
    Attack,
    Detector,
    Explainer,
    Localizer,
    Mitigation,
    PictureTest,
    Unlearner,
    method,
)
from unmemorize.core.results import Explanation, Found, Localization, Scores, Trained


@method("letters", paper="none", cost="none")
@dataclass(frozen=True)
class Letters(Detector):
    """The length of a prompt.

    Attributes:
        weight: What a letter counts.
    """

    weight: float = 1.0

    def score_recording(self, recording):
        seeds = len(recording.seeds)
        return Scores(torch.tensor([[self.weight * len(text)] * seeds for text in recording.cond.texts]))


@method("brightness", paper="none", cost="none", needs=("pictures",))
@dataclass(frozen=True)
class Brightness(PictureTest):
    """The mean of a picture's latent."""

    def score(self, subject, pictures, *, seeds):
        return Scores(pictures.latents.mean(dim=(1, 2, 3))[:, None].repeat(1, len(seeds)), 0)


@method("first-word", paper="none", cost="none")
@dataclass(frozen=True)
class FirstWord(Explainer):
    """All to the first word."""

    def explain(self, subject, prompt, *, seeds):
        words = prompt.split()
        spans = [(prompt.index(word), prompt.index(word) + len(word)) for word in words]
        return Explanation(prompt, tuple(spans), (1.0,) + (0.0,) * (len(words) - 1), {}, 0)


@method("first-layer", paper="none", cost="none")
@dataclass(frozen=True)
class FirstLayer(Localizer):
    """All of the first feed-forward."""

    def find(self, subject, cond, *, ordinary=None, progress=lambda stage, done, total: None):
        name, layer = next(iter(subject.model.feed_forwards().items()))
        mask = torch.ones_like(layer.weight, dtype=torch.bool)
        return Localization(self.name, "weights", {name: mask}, {}, (0,), tuple(cond.texts or ()), 0)


@method("shrink", paper="none", cost="none")
@dataclass(frozen=True)
class Shrink(Unlearner):
    """Scales all weights down a little."""

    updates: int = 1

    def train(self, subject, forget, keep, training):
        with torch.no_grad():
            for parameter in subject.model.denoiser.parameters():
                parameter.mul_(0.999)
        return Trained(self.updates, (), {"nothing": torch.zeros(self.updates)}, 0, 0, 0.0)


@method("no-guidance", paper="none", cost="none")
@dataclass(frozen=True)
class NoGuidance(Mitigation):
    """Every prompt without guidance."""

    acts: ClassVar = "guidance"

    @contextmanager
    def applied(self, subject):
        from dataclasses import replace

        from unmemorize.core.sample import Sampler

        yield replace(subject, sampler=Sampler(subject.sampler.steps, 1.0))


@method("stay", paper="none", cost="none")
@dataclass(frozen=True)
class Stay(Attack):
    """Finds the start."""

    updates: int = 1

    def attack(self, subject, latents, start, *, seeds, keep=()):
        return Found({0: start, self.updates: start}, torch.zeros(1, len(latents)), 0)
