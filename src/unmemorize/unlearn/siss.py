"""SISS: unlearn a picture with one evaluation of a mixture of it and of what is kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unmemorize.core.bounds import Count, Share
from unmemorize.core.methods import Subject, Training, method
from unmemorize.core.model import DiffusionModel
from unmemorize.core.results import Pairs, Surrogates
from unmemorize.unlearn.denoising import draw_noise, draw_rows
from unmemorize.unlearn.finetune import Finetuning, Stateless, global_norm, gradients
from unmemorize.unlearn.loop import Team
from unmemorize.unlearn.surrogates import draw_surrogates


def siss_weights(eps_x: Tensor, eps_a: Tensor, lam: float) -> tuple[Tensor, Tensor]:
    """Importance weights of the kept and of the forgotten sample for draws from their mixture, each (n,).

    With d = ‖m − γ·sample‖² / 2σ² = ‖ε‖² / 2 of each, w_x = 1 / ((1 − λ) + λ·exp(d_x − d_a)) and
    w_a = 1 / ((1 − λ)·exp(d_a − d_x) + λ).

    Paper: Alberti et al. 2025 (SISS).
    Differs: computed from logarithms, or the exponentials overflow: d is of the order of the number of latent values.

    Args:
        eps_x: The noise that would have made the draw of the kept sample, (n, c, h, w).
        eps_a: The same for the forgotten sample.
        lam: The share λ of draws from the forgotten sample, in (0, 1).
    """
    d_x = eps_x.double().square().flatten(1).sum(1) / 2
    d_a = eps_a.double().square().flatten(1).sum(1) / 2
    keep = torch.full_like(d_x, math.log(1 - lam))
    forget = torch.full_like(d_x, math.log(lam))
    log_x = -torch.logaddexp(keep, forget + d_x - d_a)
    log_a = -torch.logaddexp(keep + d_a - d_x, forget)
    return log_x.exp(), log_a.exp()


def against(keep: Sequence[Tensor], forget: Sequence[Tensor], share: float) -> list[Tensor]:
    """g_x − (c / ‖g_a‖)·g_a with c = `share`·‖g_x‖: the second gradient has a fixed share of the first one's norm.

    Paper: Alberti et al. 2025: c is a constant, found for each model at about a tenth of ‖g_x‖.
    Differs: the tenth itself is fixed, so that it fits every model and every update.
    """
    scale = share * global_norm(keep) / global_norm(forget).clamp(min=torch.finfo(torch.float32).tiny)
    return [x - scale.to(x) * a for x, a in zip(keep, forget, strict=True)]


@dataclass(frozen=True)
class Mixture(Stateless):
    """Unlearn memorized pictures, keeping other pictures of the same prompts.

    The draw m is the noisy memorized picture with probability λ, else the noisy kept one, with one noise and level. Its
    prediction is compared with the noise that either sample would need: w_x·‖ε_θ(m) − ε_x‖² is descended and
    w_a·‖ε_θ(m) − ε_a‖² ascended.

    Paper: Alberti et al. 2025 (λ = 0.5).
    Differs: timesteps are uniform, where the public code for Stable Diffusion draws the last one only; the kept
    pictures are the surrogates of this package; the errors are those of the trained output.

    Args:
        memorized: Pictures to forget, with their prompts.
        surrogates: Pictures to keep in their place.
        lam: λ.
        share: The norm of the forgetting gradient as a share of the keeping one's.
        batch: Rows of an update.
        seed: Of rows, timesteps and noise.
    """

    memorized: Pairs
    surrogates: Surrogates
    lam: float = 0.5
    share: float = 0.1
    batch: int = 8
    seed: int = 0

    def backward(self, model: DiffusionModel, update: int, team: Team) -> dict[str, Tensor]:
        """One evaluation a row, and two backward passes."""
        keep, forget = self.losses(model, update, team)
        parameters = [p for p in model.denoiser.parameters() if p.requires_grad]
        g_x = gradients(keep, parameters, team, again=True)
        g_a = gradients(forget, parameters, team)
        for p, g in zip(parameters, against(g_x, g_a, self.share), strict=True):
            p.grad = g
        return {"keep": keep, "forget": forget}

    def losses(self, model: DiffusionModel, update: int, team: Team) -> tuple[Tensor, Tensor]:
        """The two weighted losses, means over this process's rows."""
        share, count = team.share(self.batch), len(self.memorized)
        rows = draw_rows(count, self.batch, share, update=update, name=(self.seed, 1))
        a, x = self.memorized.latents[rows.items], draw_surrogates(self.surrogates, rows)
        noise = draw_noise(a, rows)
        of_forgotten = (rows.coins() < self.lam).to(a.device)
        t = model.timestep(noise.u)
        m = model.add_noise(torch.where(of_forgotten[:, None, None, None], a, x), noise.eps, t)
        prediction = model.predict(m, t, self.memorized.captions[rows.items])
        eps_x = (m - prediction.alpha * x) / prediction.sigma
        eps_a = (m - prediction.alpha * a) / prediction.sigma
        w_x, w_a = siss_weights(eps_x, eps_a, self.lam)
        error_x, error_a = prediction.error_for(x), prediction.error_for(a)
        return (w_x.to(error_x) * error_x).mean(), (w_a.to(error_a) * error_a).mean()


@method(
    "siss",
    paper="Alberti et al. 2025",
    cost="8 evaluations with two gradients an update, beside surrogates",
    needs=("gradients", "pictures"),
)
@dataclass(frozen=True)
class Siss(Finetuning):
    """Unlearn pictures with one evaluation of a mixture of each and of what is kept in its place.

    Attributes:
        batch: Rows of an update.
        lam: The share of draws from what is forgotten, in (0, 1).
        share: The norm of the forgetting gradient as a share of the keeping one's.
    """

    updates: Count = 100
    batch: Count = 8
    lam: float = 0.5
    share: Share = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.lam < 1:
            raise ValueError(
                f"lam has to lie between 0 and 1, not at {self.lam}: the weights are unbounded at its ends"
            )

    def objective(self, subject: Subject, forget: Pairs, keep: Pairs, training: Training) -> Mixture:
        """The two weighted losses of the mixture."""
        return Mixture(forget, training.surrogates(), self.lam, self.share, self.batch, self.seed)
