"""The contract between a diffusion model and everything that studies it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

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

    def __getitem__(self, rows: slice | Tensor) -> Condition:
        """Some of the rows."""
        extras = (None if x is None else x[rows] for x in (self.ids, self.mask))
        return Condition(self.embeds[rows], *extras)

    def followed_by(self, other: Condition) -> Condition:
        """These rows, then those of `other`; ids and masks only where both have them."""
        pairs = ((self.ids, other.ids), (self.mask, other.mask))
        extras = (None if a is None or b is None else torch.cat([a, b]) for a, b in pairs)
        return Condition(torch.cat([self.embeds, other.embeds]), *extras)


def names_of(given: Sequence[str] | Condition) -> list[str]:
    """Prompts as they are, embeddings by their numbers."""
    return [f"embedding {i}" for i in range(len(given))] if isinstance(given, Condition) else list(given)


def encoded(model: DiffusionModel, given: Sequence[str] | Condition) -> Condition:
    """Prompts encoded, embeddings as they are."""
    return given if isinstance(given, Condition) else model.encode(given)


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

    def __getitem__(self, rows: slice) -> Prediction:
        """Some of the rows, of a prediction whose `alpha` and `sigma` all rows share."""
        return Prediction(self.output[rows], self.kind, self.x[rows], self.alpha, self.sigma)

    def repeated(self, times: int) -> Prediction:
        """All rows, `times` over, of a prediction whose `alpha` and `sigma` all rows share."""
        output, x = (v.repeat(times, 1, 1, 1) for v in (self.output, self.x))
        return Prediction(output, self.kind, x, self.alpha, self.sigma)

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

    `evaluations` counts denoiser evaluations, one for every row of every call of `predict`; `training_timesteps` is how
    many timesteps the noise schedule has.
    """

    name: str
    denoiser: nn.Module
    evaluations: int
    training_timesteps: int

    def encode(self, prompts: Sequence[str]) -> Condition:
        """Prompts to their embeddings, as the family's own pipeline encodes them."""
        ...

    def spans(self, prompt: str) -> list[tuple[int, int]]:
        """The characters of the prompt behind each token position; equal ends for begin, end and padding."""
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


class TypedModel(DiffusionModel, Protocol):
    """A model whose text encoder can be differentiated down to what each token puts in.

    `vocabulary` is the words that are one token of their own; `token_table` what every token puts in, (tokens, width).
    """

    vocabulary: list[str]
    token_table: Tensor

    def encode_tokens(self, ids: Tensor, inputs: Tensor) -> Condition:
        """What `encode` gives for the prompt with these ids (n, tokens), with gradients to `inputs` = table[ids]."""
        ...
