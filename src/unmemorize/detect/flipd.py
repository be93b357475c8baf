"""How many directions a model knows around a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from unmemorize.core.methods import Subject, method
from unmemorize.core.results import Pairs, Scores
from unmemorize.detect.picture_level import AtLevel, PictureLevel

MOVE = 0.1  # a finite difference, in standard deviations of the noise at the level


@method(
    "flipd",
    paper="Kamkari et al. 2024; Ross et al. 2025 on memorization",
    cost="1 evaluation a picture, and 8 a seed",
)
@dataclass(frozen=True)
class Flipd(AtLevel):
    """The model's local intrinsic dimension at a picture, as a negative number: memorized ones have few directions.

    LID(z) = D − σ tr(∂ε/∂x) + ‖ε‖² at x = α z, without noise, D the number of latent values. At the mean of a Gaussian
    it counts the directions that are wider than σ/α. The trace is Hutchinson's, with random signs, by finite steps.

    Paper: Kamkari et al. 2024, the estimator; Ross et al. 2025, why it falls for memorized pictures.
    Differs: the level, which neither paper's public text fixes, is given as α/σ. With the picture's caption; an empty
    one is the unconditional version.
    """

    def score(self, subject: Subject, pictures: Pairs, *, seeds: Sequence[int]) -> Scores:
        """Score every picture at every seed; `columns` holds the dimension, (n, seeds)."""
        model = subject.model
        level = PictureLevel.of(model, pictures, self.ratio)
        move, sigma = float(MOVE * level.sigma), float(level.sigma)
        traces = []
        with model.counted() as cost:
            here = level.eps(torch.zeros_like(level.latents))
            for seed in seeds:
                trace = torch.zeros(len(here)).to(here)
                for direction in level.gaussian(seed, self.probes).sign():
                    change = (level.eps(move * direction) - here) / move
                    trace += change @ direction.flatten().to(change) / self.probes
                traces.append(trace)
        length = here.square().sum(dim=1, keepdim=True)
        dimension = (here.shape[1] - sigma * torch.stack(traces, dim=1) + length).float().cpu()
        return Scores(-dimension, cost.forward, {"dimension": dimension})
