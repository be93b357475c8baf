"""Models whose answer is known: the closed-form denoiser of a finite image set, and of a Gaussian.

They are the independent truth of tests: the first is a perfect memorizer, the second memorizes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from unmemorize.core.errors import NotApplicable
from unmemorize.core.model import Condition, Parameterisation, Reach
from unmemorize.models.pipeline import Adapter
from unmemorize.models.schedules import RectifiedFlow, SchedulerRun, VariancePreserving


class FiniteSet(nn.Module):
    """E[x0 | x] where x0 is one of `images` (k, c, h, w) and the embedding holds its log prior, (n, 1, k)."""

    images: Tensor

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

    mean: Tensor
    variance: Tensor

    def __init__(self, mean: Tensor, variance: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("variance", variance)

    def forward(self, x: Tensor, alpha: Tensor, sigma: Tensor, embeds: Tensor) -> Tensor:
        """The posterior mean."""
        gain = alpha * self.variance / (alpha.square() * self.variance + sigma.square())
        return self.mean + gain * (x - alpha * self.mean)


class OracleModel(Adapter):
    """A closed-form denoiser as a `DiffusionModel`; latents are images shifted to [-1, 1].

    Args:
        denoiser: The closed form.
        prompts: The indices of the images that a prompt stands for; any other prompt stands for all of them.
        kind: What it predicts. A flow runs along x = (1 − σ)·x0 + σ·ε, the others preserve variance.
        zero_terminal_snr: The schedule, of other kinds than flow, ends in pure noise, as that of a flow does.
    """

    guidance = 7.5

    def __init__(
        self,
        denoiser: FiniteSet | Gaussian,
        prompts: Mapping[str, Sequence[int]] | None = None,
        *,
        kind: Parameterisation = "epsilon",
        zero_terminal_snr: bool = False,
    ) -> None:
        super().__init__()
        self.name = f"oracle-{type(denoiser).__name__}"
        self.denoiser = self._closed_form = denoiser.double()
        self._kind: Parameterisation = kind
        self._prompts = dict(prompts or {})
        self._scheduler: Any
        if kind == "flow":
            self._scheduler = FlowMatchEulerDiscreteScheduler()
            self.levels = RectifiedFlow(self._scheduler.config.num_train_timesteps)
        else:
            self._scheduler = DDIMScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                clip_sample=False,
                set_alpha_to_one=False,
                steps_offset=1,
                prediction_type=kind,
                rescale_betas_zero_snr=zero_terminal_snr,
                timestep_spacing="trailing" if zero_terminal_snr else "leading",
            )
            self.levels = VariancePreserving(self._scheduler.alphas_cumprod)

    @property
    def kind(self) -> Parameterisation:
        """What it predicts."""
        return self._kind

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images."""
        height, width = self._shape[1:]
        return height, width

    @property
    def fingerprint(self) -> str:
        """Its name: there is nothing to hash."""
        return self.name

    def encode(self, prompts: Sequence[str]) -> Condition:
        """Log priors over the images: 0 for those the prompt stands for, -10⁴ for the others."""
        count = len(self._closed_form.images) if isinstance(self._closed_form, FiniteSet) else 1
        embeds = torch.zeros(len(prompts), 1, count, dtype=torch.float64)
        for row, prompt in enumerate(prompts):
            if prompt in self._prompts:
                embeds[row] = -1e4
                embeds[row, 0, list(self._prompts[prompt])] = 0
        return Condition(embeds, texts=tuple(prompts))

    def spans(self, prompt: str) -> list[tuple[int, int]]:
        """The whole prompt is one token."""
        return [(0, len(prompt))]

    def noise(self, generators: Sequence[torch.Generator]) -> Tensor:
        """One standard normal latent per generator."""
        return torch.stack([torch.randn(self._shape, generator=g, dtype=torch.float64) for g in generators])

    def schedule(self, steps: int) -> SchedulerRun:
        """A private copy of its scheduler."""
        return SchedulerRun(self._scheduler, steps, self.device)

    def denoise(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """The exact prediction, in this model's parameterisation."""
        alpha, sigma = self.alpha_sigma(t)
        x0: Tensor = self.denoiser(x, alpha.expand(len(x), 1, 1, 1), sigma.expand(len(x), 1, 1, 1), cond.embeds)
        if self.kind == "sample":
            return x0
        if self.kind == "flow":
            return (x - x0) / sigma
        eps = (x - alpha * x0) / sigma
        return eps if self.kind == "epsilon" else alpha * eps - sigma * x0

    def decode(self, x: Tensor) -> Tensor:
        """Latents to images in [0, 1]."""
        self.count_decodes(len(x))
        return (x / 2 + 0.5).clamp(0, 1)

    def invert(self, images: Tensor) -> Tensor:
        """Images in [0, 1] to latents."""
        return images.double() * 2 - 1

    def text_projections(self, reach: Reach = "all") -> dict[str, nn.Linear]:
        """None.

        Raises:
            NotApplicable: Always.
        """
        raise NotApplicable("a closed form has no cross-attention")

    def text_inputs(self, cond: Condition) -> Tensor:
        """None.

        Raises:
            NotApplicable: Always.
        """
        raise NotApplicable("a closed form has no cross-attention")

    def text_stream_values(self, reach: Reach = "all") -> dict[str, nn.Linear]:
        """None.

        Raises:
            NotApplicable: Always.
        """
        raise NotApplicable("a closed form has no attention")

    def feed_forwards(self) -> dict[str, nn.Linear]:
        """None.

        Raises:
            NotApplicable: Always.
        """
        raise NotApplicable("a closed form has no transformer feed-forward")

    def attention_layers(self) -> dict[str, nn.Linear]:
        """None.

        Raises:
            NotApplicable: Always.
        """
        raise NotApplicable("a closed form has no attention")

    def save(self, folder: Path) -> None:
        """It is not saved.

        Raises:
            NotApplicable: Always.
        """
        raise NotApplicable("a closed form is not saved")

    @property
    def _shape(self) -> torch.Size:
        if isinstance(self._closed_form, FiniteSet):
            return self._closed_form.images.shape[1:]
        return self._closed_form.mean.shape
