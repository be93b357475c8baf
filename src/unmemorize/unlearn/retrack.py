"""ReTrack: answer a noisy picture that is to be forgotten with the noise that its neighbours would need."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from unmemorize.core.bounds import Count
from unmemorize.core.methods import Subject, Training, method
from unmemorize.core.model import DiffusionModel, Prediction
from unmemorize.core.results import Pairs, Surrogates
from unmemorize.unlearn.denoising import denoising_errors, draw_noise, draw_rows
from unmemorize.unlearn.finetune import Finetuning, Stateless
from unmemorize.unlearn.loop import Team
from unmemorize.unlearn.surrogates import draw_surrogates


def nearest_kept(memorized: Tensor, surrogates: Surrogates, count: int) -> list[Tensor]:
    """The `count` pictures kept in each memorized one's place that are nearest to it, (at most count, c, h, w) each."""
    neighbours = []
    for number, latent in enumerate(memorized):
        own = surrogates.latents[surrogates.stands_for == number]
        distances = (own - latent).flatten(1).norm(dim=1)
        neighbours.append(own[distances.argsort()[:count]])
    return neighbours


def retracked_error(prediction: Prediction, neighbours: Tensor) -> Tensor:
    """Σ_k p_k ‖ε_θ(x) − v_k‖² of one row in the trained output, a mean over its values: v_k would give neighbour k.

    In ε, v_k = (x − α x_k) / σ and p = softmax_k(−‖v_k‖² / 2), how likely x is to have come from each. Where there is
    little noise v_k grows without bound: below σ = α the error counts by (σ/α)², as that of the clean latent does.

    Args:
        prediction: Of one row.
        neighbours: Pictures kept in its place, (k, c, h, w).
    """
    alpha, sigma, x = prediction.alpha, prediction.sigma, prediction.x
    away = (x - alpha * neighbours).double() / sigma.double()
    p = (-away.square().flatten(1).sum(dim=1) / 2).softmax(dim=0)
    errors = prediction.error_for(neighbours)
    weight = (sigma / alpha).square().clamp(max=1).reshape(()).to(errors)
    return weight * (p.to(errors) * errors).sum()


@dataclass(frozen=True)
class Retracking(Stateless):
    """Move what noisy memorized pictures give to their neighbours, and keep what noisy kept pictures give.

    Paper: Shi et al. 2026 (ReTrack): λ Σ_k p_k ‖ε_θ(x_t) − v_k‖² + (1 − λ) ‖ε_θ(x'_t) − ε‖², x_t the noisy memorized
    picture and x' a kept one.
    Differs: kept pictures are the surrogates of this package, neighbours those of the picture's own prompt; errors are
    those of the trained output, and bounded at low noise.

    Args:
        memorized: Pictures to forget, with their prompts.
        surrogates: Pictures to keep in their place.
        neighbours: How many of them each is answered with.
        lam: λ.
        batch: Rows of an update.
        seed: Of rows, timesteps and noise.
    """

    memorized: Pairs
    surrogates: Surrogates
    neighbours: int = 10
    lam: float = 0.5
    batch: int = 16
    seed: int = 0

    @cached_property
    def nearest(self) -> list[Tensor]:
        """The neighbours of each memorized picture: they do not change in training."""
        return nearest_kept(self.memorized.latents, self.surrogates, self.neighbours)

    def backward(self, model: DiffusionModel, update: int, team: Team) -> dict[str, Tensor]:
        """Two evaluations a row."""
        forget, keep = self.losses(model, update, team)
        (self.lam * forget + (1 - self.lam) * keep).backward()
        return {"forget": forget, "keep": keep}

    def losses(self, model: DiffusionModel, update: int, team: Team) -> tuple[Tensor, Tensor]:
        """Both losses, means over this process's rows."""
        count = len(self.memorized)
        rows = draw_rows(count, self.batch, team.share(self.batch), update=update, name=(self.seed, 1))
        latents, captions = self.memorized.latents[rows.items], self.memorized.captions[rows.items]
        noise = draw_noise(latents, rows)
        t = model.timestep(noise.u)
        x = model.add_noise(latents, noise.eps, t)
        prediction = model.predict(x, t, captions)
        errors = []
        for row, number in enumerate(rows.items.tolist()):
            errors.append(retracked_error(prediction[row : row + 1], self.nearest[number]))
        shown = draw_surrogates(self.surrogates, rows)
        return torch.stack(errors).mean(), denoising_errors(model, shown, captions, draw_noise(shown, rows)).mean()


@method(
    "retrack",
    paper="Shi et al. 2026",
    cost="32 evaluations with gradient an update, beside surrogates",
    needs=("gradients", "pictures"),
)
@dataclass(frozen=True)
class Retrack(Finetuning):
    """Unlearn pictures by answering each, noisy, with the noise that pictures kept in its place would need.

    Attributes:
        batch: Rows of an update.
        neighbours: Kept pictures that each is answered with.
        lam: The share of forgetting in the loss, between 0 and 1.
    """

    updates: Count = 30
    batch: Count = 16
    neighbours: Count = 10
    lam: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.lam <= 1 or self.neighbours < 1:
            raise ValueError(f"lam has to lie between 0 and 1, not at {self.lam}, neighbours has to be above 0")

    def objective(self, subject: Subject, forget: Pairs, keep: Pairs, training: Training) -> Retracking:
        """The two losses of noisy memorized and kept pictures."""
        return Retracking(forget, training.surrogates(), self.neighbours, self.lam, self.batch, self.seed)
