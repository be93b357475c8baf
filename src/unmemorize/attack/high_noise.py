"""DoRI where copies are decided: at high noise, by what the model takes the clean picture to be, in small steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unmemorize.attack.dori import Dori
from unmemorize.core.bounds import Count, Scale, Share
from unmemorize.core.methods import method
from unmemorize.core.model import Prediction, drawn_levels


@method(
    "high-noise",
    paper="ours, after Kowalczuk et al. 2026",
    cost="2 evaluations with gradient an update and picture",
    needs=("gradients", "pictures"),
)
@dataclass(frozen=True)
class HighNoise(Dori):
    """DoRI at high noise: a third of its denoiser evaluations, and as much found on the pruned testbed.

    Three things differ from the paper. Noise levels come from the noisiest part of the schedule, above `lowest` of it:
    what a picture becomes is decided there. The error is that of the clean latent, ‖x0 − x̂0‖² = (σ/α)² ‖ε − ε_θ‖²,
    which is largest there, where DoRI's all but vanishes. Two rows an update instead of eight give four times as many
    updates for the same evaluations, with a learning rate that falls to zero, so that the last average the noise out.

    Attributes:
        lowest: The noise level in (0, 1) above which all are drawn.
    """

    updates: Count = 64
    lr: Scale = 0.2
    batch: Count = 2
    lowest: Share = 0.3

    def rate(self, done: int) -> float:
        """Falls linearly to zero."""
        return self.lr * (1 - done / self.updates)

    def levels(self, generator: torch.Generator) -> Tensor:
        """Noise levels from the noisiest part."""
        return drawn_levels(self.batch, generator, lowest=self.lowest, skip=1)

    def errors(self, prediction: Prediction, x0: Tensor, noise: Tensor) -> Tensor:
        """Mean square error of the predicted clean latent."""
        return (prediction.x0.float() - x0.float()).square().mean(dim=(1, 2, 3))


@method(
    "from-noise",
    paper="ours, after Kowalczuk et al. 2026",
    cost="2 evaluations with gradient an update and picture",
    needs=("gradients", "pictures"),
)
@dataclass(frozen=True)
class FromNoise(HighNoise):
    """`HighNoise` on states that show nothing of the picture, as those are where sampling starts.

    DoRI's states are noisy versions of the picture: a model that recognises them can answer them otherwise than those
    that its own sampling comes from, and then its prompt gives copies that DoRI does not find.
    """

    lowest: Share = 0.5

    def shown(self, x0: Tensor) -> Tensor:
        """Zeros: the states show nothing of the picture."""
        return torch.zeros_like(x0)
