"""How well a model does at a picture what it was trained for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from unmemorize.core.bounds import Draws
from unmemorize.core.methods import PictureTest, Subject, method
from unmemorize.core.results import Pairs, Scores
from unmemorize.detect.picture_level import PictureLevel


@method(
    "loss",
    paper="Carlini et al. 2023, section 5, the loss as evidence of membership; Dubiński et al. 2025, of a set",
    cost="8 evaluations a picture and seed",
)
@dataclass(frozen=True)
class Loss(PictureTest):
    """The training loss at a picture, as a negative number: it is low for what was trained on.

    The squared error in the trained output, its mean over latent values and over noise levels that are evenly spaced,
    u = (k + ½) / levels, with a noise each, the same for all pictures.

    Paper: Carlini et al. 2023; of one picture it says little, which is why Dubiński et al. 2025 test sets.
    Differs: every level counts alike, as in training; no model trained on other pictures beside it.

    Attributes:
        levels: Noise levels.
    """

    levels: Draws = 8

    def score(self, subject: Subject, pictures: Pairs, *, seeds: Sequence[int]) -> Scores:
        """Score every picture at every seed."""
        model = subject.model
        timesteps = model.timestep((torch.arange(self.levels) + 0.5) / self.levels).to(model.device)
        levels = [PictureLevel.at(model, pictures, t) for t in timesteps]
        by_seed = []
        with model.counted() as cost:
            for seed in seeds:
                errors = torch.zeros(len(pictures))
                noises = levels[0].gaussian(seed, self.levels)
                for level, noise in zip(levels, noises, strict=True):
                    errors += level.predict(level.sigma * noise).error(pictures.latents, noise).cpu() / self.levels
                by_seed.append(-errors)
        return Scores(torch.stack(by_seed, dim=1), cost.forward)
