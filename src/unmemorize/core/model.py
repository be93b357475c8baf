"""The contract between a diffusion model and everything that studies it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, Self

import torch
from torch import Tensor, nn

Parameterisation = Literal["epsilon", "sample", "v_prediction", "flow"]


@dataclass(frozen=True)
class Condition:
    """Encoded prompts: embeddings (n, tokens, width), token ids and attention mask (n, tokens)."""

    embeds: Tensor
    ids: Tensor | None = None
    mask: Tensor | None = None

    def __len__(self) -> int:
        return len(self.embeds)

    def __getitem__(self, rows: slice | Tensor) -> Self:
        """Some of the rows."""
        return self._map(lambda x: x[rows])

    def repeat(self, times: int) -> Self:
        """Every row `times` times, one after the other."""
        return self._map(lambda x: x.repeat_interleave(times, dim=0))

    def _map(self, function) -> Self:  # type: ignore[no-untyped-def]
        fields = {k: None if v is None else function(v) for k, v in vars(self).items()}
        return replace(self, **fields)


@dataclass(frozen=True)
class Prediction:
    """What a denoiser said of x = α·x0 + σ·ε, in whichever parameterisation it was trained in.

    `output` and `x` are (n, c, h, w); `alpha` and `sigma` broadcast against them. For a flow model α = 1 − σ.
    """

    output: Tensor
    kind: Parameterisation
    x: Tensor
    alpha: Tensor
    sigma: Tensor

    @property
    def eps(self) -> Tensor:
        """The predicted noise."""
        match self.kind:
            case "epsilon":
                return self.output
            case "sample":
                return (self.x - self.alpha * self.output) / self.sigma
            case "v_prediction":
                return self.alpha * self.output + self.sigma * self.x
            case "flow":
                return self.x + self.alpha * self.output

    @property
    def x0(self) -> Tensor:
        """The predicted clean latent."""
        match self.kind:
            case "epsilon":
                return (self.x - self.sigma * self.output) / self.alpha
            case "sample":
                return self.output
            case "v_prediction":
                return self.alpha * self.x - self.sigma * self.output
            case "flow":
                return self.x - self.sigma * self.output

    @property
    def v(self) -> Tensor:
        """The predicted velocity α·ε − σ·x0 of a variance-preserving process."""
        return self.output if self.kind == "v_prediction" else self.alpha * self.eps - self.sigma * self.x0

    @property
    def score(self) -> Tensor:
        """The predicted score, the gradient of log p(x): −ε / σ."""
        return -self.eps / self.sigma


class Schedule(Protocol):
    """One sampling run's private scheduler."""

    timesteps: Tensor
    initial_scale: float

    def scale(self, x: Tensor, t: Tensor) -> Tensor:
        """The denoiser's input for the sampler's state `x`."""
        ...

    def step(self, output: Tensor, t: Tensor, x: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """The sampler's next state."""
        ...


class DiffusionModel(Protocol):
    """A text-to-image diffusion model, whatever its family.

    `evaluations` counts denoiser evaluations, one for every row of every call of `predict`.
    """

    name: str
    denoiser: nn.Module
    evaluations: int

    def encode(self, prompts: Sequence[str]) -> Condition:
        """Prompts to their embeddings, as the family's own pipeline encodes them."""
        ...

    def noise(self, generators: Sequence[torch.Generator]) -> Tensor:
        """One standard normal latent per generator: independent of batch size and device."""
        ...

    def schedule(self, steps: int) -> Schedule:
        """A private copy of the model's scheduler, set to `steps`."""
        ...

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """α(t)·x0 + σ(t)·noise; `t` is (n,)."""
        ...

    def predict(self, x: Tensor, t: Tensor, cond: Condition) -> Prediction:
        """Evaluate the denoiser once per row; `t` is a scalar or (n,)."""
        ...

    def decode(self, x: Tensor) -> Tensor:
        """Latents to images (n, 3, H, W) in [0, 1]."""
        ...

    def invert(self, images: Tensor) -> Tensor:
        """Images in [0, 1] to latents."""
        ...
