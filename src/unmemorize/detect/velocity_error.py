"""How well a model points at a picture from the middle of the noise, for how much there is to see in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from unmemorize.core.batches import decoded
from unmemorize.core.methods import Subject, method
from unmemorize.core.recording import wide
from unmemorize.core.results import Pairs, Scores
from unmemorize.detect.picture_level import AtLevel, PictureLevel
from unmemorize.metrics.complexity import png_sizes


@method(
    "velocity-error",
    paper="Rao & Moyer 2026, T_mc_cal",
    cost="8 evaluations a picture and seed, and one decoded picture",
)
@dataclass(frozen=True)
class VelocityError(AtLevel):
    """The squared error of the mean velocity at a picture divided by the picture's complexity, as a negative number.

    T = ‖z − mean_k v(α z + σ ε_k)‖², v = x̂0 − ε̂, since the mean of what v is trained for, z − ε, is z. Complexity is
    the size of the decoded picture as a PNG file. At α = σ, near which the paper finds members best, one formula serves
    flow models and others.

    Paper: Rao and Moyer 2026, on rectified flow, known from its abstract and from notes on it.
    Differs: a few noises a seed; with the picture's caption, of which an empty one is the unconditional version.
    """

    ratio: float = 1.0

    def score(self, subject: Subject, pictures: Pairs, *, seeds: Sequence[int]) -> Scores:
        """Score every picture at every seed; `columns` holds T and the complexity, (n, seeds)."""
        model = subject.model
        level = PictureLevel.of(model, pictures, self.ratio)
        errors = []
        with model.counted() as cost:
            for seed in seeds:
                mean = torch.zeros_like(wide(level.latents))
                for noise in level.gaussian(seed, self.probes):
                    prediction = level.predict(level.sigma * noise)
                    mean += (wide(prediction.x0) - wide(prediction.eps)) / self.probes
                errors.append((level.latents - mean).flatten(1).square().sum(dim=1))
        error = torch.stack(errors, dim=1).float().cpu()
        sizes = png_sizes(decoded(model, level.latents))
        complexity = sizes[:, None].expand_as(error)
        return Scores(-error / complexity, cost.forward, {"error": error, "complexity": complexity})
