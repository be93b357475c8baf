"""Models whose answer is known: the closed-form denoiser of a finite image set, and of a Gaussian.

They are the independent truth of tests: the first is a perfect memorizer, the second memorizes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from unmemorize.core.model import Condition, Prediction
from unmemorize.models.unet import UNetSchedule


class FiniteSet(nn.Module):
    """E[x0 | x] where x0 is one of `images` (k, c, h, w) and the embedding holds its log prior, (n, 1, k)."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.register_buffer("images", images)

    def forward(self, x: Tensor, alpha: Tensor, sigma: Tensor, embeds: Tensor) -> Tensor:
        """The posterior mean."""
        difference = x[:, None] - alpha[:, None] * self.images[None]
        log_likelihood = -difference.square().sum(dim=(2, 3, 4)) / (2 * sigma.reshape(-1, 1).square())
        posterior = (log_likelihood + embeds[:, 0].to(x)).softmax(dim=1)
        return torch.einsum("nk,kchw->nchw", posterior, self.images)


class Gaussian(nn.Module):
    """E[x0 | x] where x0 ~ N(mean, variance), each (c, h, w); the embedding is not read."""

    def __init__(self, mean: Tensor, variance: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("variance", variance)

    def forward(self, x: Tensor, alpha: Tensor, sigma: Tensor, embeds: Tensor) -> Tensor:
        """The posterior mean."""
        gain = alpha * self.variance / (alpha.square() * self.variance + sigma.square())
        return self.mean + gain * (x - alpha * self.mean)


class OracleModel:
    """A closed-form denoiser as a `DiffusionModel`; latents are images shifted to [-1, 1].

    `prompts` maps a prompt to the indices of the images it stands for; any other prompt stands for all of them.
    """

    def __init__(
        self,
        denoiser: FiniteSet | Gaussian,
        prompts: Mapping[str, Sequence[int]] | None = None,
        *,
        kind: Literal["epsilon", "sample", "v_prediction"] = "epsilon",
    ) -> None:
        self.name = f"oracle-{type(denoiser).__name__}"
        self.denoiser = denoiser.double()
        self.evaluations = 0
        self.kind = kind
        self._prompts = dict(prompts or {})
        self._scheduler = DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            prediction_type=kind,
        )
        self._alphas = self._scheduler.alphas_cumprod.double()
        self.training_timesteps = len(self._alphas)

    def encode(self, prompts: Sequence[str]) -> Condition:
        """Log priors over the images: 0 for those the prompt stands for, -10⁴ for the others."""
        count = len(self.denoiser.images) if isinstance(self.denoiser, FiniteSet) else 1
        embeds = torch.zeros(len(prompts), 1, count, dtype=torch.float64)
        for row, prompt in enumerate(prompts):
            if prompt in self._prompts:
                embeds[row] = -1e4
                embeds[row, 0, list(self._prompts[prompt])] = 0
        return Condition(embeds)

    def spans(self, prompt: str) -> list[tuple[int, int]]:
        """The whole prompt is one token."""
        return [(0, len(prompt))]

    def noise(self, generators: Sequence[torch.Generator]) -> Tensor:
        """One standard normal latent per generator."""
        buffers = dict(self.denoiser.named_buffers())
        shape = (buffers["images"] if "images" in buffers else buffers["mean"][None]).shape[1:]
        return torch.stack([torch.randn(shape, generator=g, dtype=torch.float64) for g in generators])

    def schedule(self, steps: int) -> UNetSchedule:
        """A private copy of a DDIM scheduler."""
        return UNetSchedule(self._scheduler, steps, torch.device("cpu"))

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """α(t)·x0 + σ(t)·noise."""
        alpha, sigma = self._alpha_sigma(t)
        return alpha * x0 + sigma * noise

    def predict(self, x: Tensor, t: Tensor, cond: Condition) -> Prediction:
        """The exact prediction, in this model's parameterisation."""
        self.evaluations += len(x)
        alpha, sigma = self._alpha_sigma(t)
        x0 = self.denoiser(x, alpha.expand(len(x), 1, 1, 1), sigma.expand(len(x), 1, 1, 1), cond.embeds)
        eps = (x - alpha * x0) / sigma
        output = {"epsilon": eps, "sample": x0, "v_prediction": alpha * eps - sigma * x0}[self.kind]
        return Prediction(output, self.kind, x, alpha, sigma)

    def decode(self, x: Tensor) -> Tensor:
        """Latents to images in [0, 1]."""
        return (x / 2 + 0.5).clamp(0, 1)

    def invert(self, images: Tensor) -> Tensor:
        """Images in [0, 1] to latents."""
        return images.double() * 2 - 1

    def _alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alphas = self._alphas[t.long()].reshape(-1, 1, 1, 1)
        return alphas.sqrt(), (1 - alphas).sqrt()
