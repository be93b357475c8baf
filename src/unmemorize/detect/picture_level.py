"""What picture tests share: pictures as inputs of the denoiser at one noise level."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unmemorize.core.batches import CODED, decoded
from unmemorize.core.bounds import Draws
from unmemorize.core.methods import PictureTest
from unmemorize.core.model import Condition, DiffusionModel, Prediction
from unmemorize.core.recording import timestep_at, wide
from unmemorize.core.results import Pairs
from unmemorize.core.sample import predicted


@dataclass(frozen=True)
class AtLevel(PictureTest):
    """A test at one noise level, with random directions or noises that are the same for all pictures.

    Attributes:
        ratio: The signal-to-noise ratio α/σ of the level.
        probes: Random directions or noises a seed.
    """

    ratio: float = 5.0
    probes: Draws = 8

    def __post_init__(self) -> None:
        if self.ratio <= 0 or self.probes < 1:
            raise ValueError(f"ratio={self.ratio}, probes={self.probes}: name a ratio above 0 and a probe or more")


@dataclass(frozen=True, eq=False)
class PictureLevel:
    """Pictures at a noise level: the inputs without noise are α·z, z the latents, (n, c, h, w)."""

    model: DiffusionModel
    latents: Tensor
    captions: Condition
    t: Tensor
    alpha: Tensor
    sigma: Tensor

    @classmethod
    def of(cls, model: DiffusionModel, pictures: Pairs, ratio: float) -> PictureLevel:
        """Those pictures at the level α/σ = `ratio`."""
        return cls.at(model, pictures, timestep_at(model, ratio))

    @classmethod
    def at(cls, model: DiffusionModel, pictures: Pairs, t: Tensor) -> PictureLevel:
        """Those pictures at a timestep, a scalar."""
        alpha, sigma = (level.to(pictures.latents) for level in model.alpha_sigma(t))
        return cls(model, pictures.latents, pictures.captions, t, alpha, sigma)

    def predict(self, noise: Tensor) -> Prediction:
        """Predictions with the captions at α·z + `noise`, which is (n, c, h, w) or the same for all pictures."""
        return predicted(self.model, self.alpha * self.latents + noise, self.t, self.captions)

    def eps(self, noise: Tensor) -> Tensor:
        """The predicted noise there, (n, values)."""
        return wide(self.predict(noise).eps).flatten(1)

    def gaussian(self, seed: int, count: int) -> Tensor:
        """Standard normal numbers of a seed, (count, c, h, w)."""
        generator = torch.Generator("cpu").manual_seed(seed)
        shape = (count, *self.latents.shape[1:])
        return torch.randn(shape, generator=generator, dtype=torch.float32).to(self.latents)


def distances(model: DiffusionModel, pictures: Pairs, images: Tensor) -> Tensor:
    """The root mean square difference of each image (n, 3, h, w) to the picture as the VAE has it, (n,) on the CPU."""
    parts = []
    for latents, image in zip(pictures.latents.split(CODED), images.split(CODED), strict=True):
        difference = wide(decoded(model, latents)) - wide(image)
        parts.append(difference.flatten(1).square().mean(dim=1).sqrt().float().cpu())
    return torch.cat(parts)
