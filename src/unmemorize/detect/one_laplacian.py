"""How sharply the directions of the score meet at a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from unmemorize.core.methods import Subject, method
from unmemorize.core.results import Pairs, Scores
from unmemorize.detect.picture_level import AtLevel, PictureLevel

RADIUS = 0.1  # of the sphere, in lengths of the noise at the level


@method(
    "one-laplacian",
    paper="Brokman et al. 2025",
    cost="16 evaluations a picture and seed",
)
@dataclass(frozen=True)
class OneLaplacian(AtLevel):
    """The divergence of the score's direction at a picture, as a negative number: at a peak all of them point inwards.

    Δ₁ = div(s / ‖s‖) ≈ (D / r) mean ⟨ŝ(x + r u), u⟩ over unit vectors u and −u, at x = α z, without noise (the
    divergence theorem on a sphere). The magnitude of the score does not matter, nor does the parameterisation.

    Paper: Brokman et al. 2025, the 1-Laplacian.
    Differs: level and radius, which its abstract does not fix. With the picture's caption; an empty one is the
    unconditional version.
    """

    def score(self, subject: Subject, pictures: Pairs, *, seeds: Sequence[int]) -> Scores:
        """Score every picture at every seed; `columns` holds the 1-Laplacian, (n, seeds)."""
        model = subject.model
        level = PictureLevel.of(model, pictures, self.ratio)
        values = level.latents[0].numel()
        radius = RADIUS * float(level.sigma) * values**0.5

        def outwards(direction: Tensor) -> Tensor:
            score = normalize(-level.eps(radius * direction), dim=1)
            return score @ direction.flatten().to(score)

        by_seed = []
        with model.counted() as cost:
            for seed in seeds:
                drawn = level.gaussian(seed, self.probes)
                units = normalize(drawn.flatten(1), dim=1).reshape(drawn.shape)
                means = [(outwards(unit) + outwards(-unit)) / 2 for unit in units]
                by_seed.append(values / radius * torch.stack(means).mean(dim=0))
        laplacian = torch.stack(by_seed, dim=1).float().cpu()
        return Scores(-laplacian, cost.forward, {"laplacian": laplacian})
