"""Adjusting the initial noise: start where a prompt says less, batch-wise or sample by sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unmemorize.core.bounds import Count, Scale, Share
from unmemorize.core.hooks import frozen
from unmemorize.core.methods import Acts, method
from unmemorize.core.model import Condition, DiffusionModel
from unmemorize.core.sample import Sampler, sampling_start
from unmemorize.mitigate.sampling import BySampler
from unmemorize.mitigate.static_transition import StaticSampler, require_share

TRANSITION = 0.893  # t = 900 of Stable Diffusion's 1000: the first five of 50 steps


def difference(model: DiffusionModel, cond: Condition, noise: Tensor, steps: int) -> Tensor:
    """What the prompts add to the trained output at the first of `steps` sampling steps from this noise, (n, c, h, w).

    It points to where they see noise, as Δε does: of a model that predicts x0 the difference is turned round.
    """
    x, t = sampling_start(model, noise, steps)
    empty, given = model.predict(x, t, model.unconditional(len(x))), model.predict(x, t, cond)
    return empty.output - given.output if given.kind == "sample" else given.output - empty.output


def norms(rows: Tensor) -> Tensor:
    """The length of every row, (n,)."""
    length: Tensor = rows.flatten(1).norm(dim=1)
    return length


def directions(rows: Tensor) -> Tensor:
    """Every row over its length; zeros stay zeros."""
    length = norms(rows).clamp(min=torch.finfo(rows.dtype).tiny)
    return rows / length[:, None, None, None]


def descend(
    objective: Callable[[Tensor, Tensor], Tensor],
    noise: Tensor,
    *,
    target: float,
    lr: float,
    weight_decay: float,
    iterations: int,
) -> tuple[Tensor, Tensor]:
    """Move each row by AdamW until its objective is at most `target`; the noise (n, c, h, w) and its objective (n,).

    Rows are optimised by themselves: the result does not depend on how many are moved together. A row that is under the
    target from the start stays what it is, bit for bit.

    Args:
        objective: The values of some rows, given the noise there and their numbers.
        noise: Where to start.
        target: The value to get under.
        lr: Learning rate.
        weight_decay: Decay of the noise an update, as a share of the learning rate.
        iterations: Updates, at most.
    """
    moving = noise.detach().to(torch.promote_types(noise.dtype, torch.float32), copy=True).requires_grad_()
    optimizer = torch.optim.AdamW([moving], lr=lr, weight_decay=weight_decay)
    last, values = noise.clone(), torch.zeros(len(noise), dtype=moving.dtype, device=noise.device)
    active = torch.arange(len(noise), device=noise.device)
    for iteration in range(iterations + 1):
        with torch.enable_grad():
            current = objective(moving[active].to(noise.dtype), active)
            (gradient,) = torch.autograd.grad(current.sum(), moving)
        last[active], values[active] = moving.detach()[active].to(last), current.detach().to(values)
        active = active[current.detach() > target]
        if not len(active) or iteration == iterations:
            break
        moving.grad = gradient
        optimizer.step()
    return last, values


@dataclass(frozen=True)
class BatchWiseSampler(StaticSampler):
    """A sampler that walks away from where the prompt says more, and guides a little later."""

    gamma: float = 0.7
    rho: float = 50 / 128
    rounds: int = 2

    def start(
        self, model: DiffusionModel, cond: Condition, noise: Tensor, seeds: Sequence[int]
    ) -> tuple[Condition, Tensor]:
        """The prompts as they are, and the adjusted noise."""
        steps, reach = self.steps_of(model), self.rho * math.sqrt(noise[0].numel())
        with torch.no_grad():
            for _ in range(self.rounds):
                here = difference(model, cond, noise, steps)
                ahead = difference(model, cond, noise + reach * directions(here), steps)
                noise = noise - self.gamma * (ahead - here)
        return cond, noise


@method(
    "batch-wise-noise",
    paper="Han et al. 2025 (batch-wise)",
    cost="8 evaluations a picture",
    needs=("unconditional",),
)
@dataclass(frozen=True)
class BatchWiseNoise(BySampler):
    """Start from noise that has been moved from where the prompt says more; guide from a little later on.

    With Δ what the prompt adds to the prediction at the first step, x ← x − γ (Δ(x + δ) − Δ(x)), δ = ρ Δ(x) / ‖Δ(x)‖,
    M times: a step down ‖Δ‖ without a gradient.

    Paper: Han et al. 2025 (γ = 0.7, ρ = 50, M = 2 and no guidance above 900 of 1000 timesteps, for Stable Diffusion
    1.4; ρ = 30, M = 4 and 917 for 2.0).
    Differs: ρ is a share of the noise's length, √D, so that it fits latents of any size: 50 of 128 is the paper's.
    Δ is measured in the trained output, in which γ is to be read.

    Attributes:
        gamma: γ, the length of a step.
        rho: ρ, how far it looks ahead, as a share of the length of noise.
        rounds: M.
        until: The share of noise, σ / (α + σ), down to which there is no guidance.
    """

    acts: ClassVar[Acts] = "noise"
    guided: ClassVar[bool] = True

    gamma: float = 0.7
    rho: float = 50 / 128
    rounds: Count = 2
    until: Share = TRANSITION

    def __post_init__(self) -> None:
        require_share(self.until)

    def sampler(self, base: Sampler) -> BatchWiseSampler:
        """With adjusted noise, and without guidance at first."""
        return BatchWiseSampler(
            base.steps, base.guidance, until=self.until, gamma=self.gamma, rho=self.rho, rounds=self.rounds
        )


@dataclass(frozen=True)
class PerSampleSampler(Sampler):
    """A sampler that starts from noise at which the prompt's magnitude is low."""

    target: float = 0.9
    lr: float = 0.01
    iterations: int = 1000

    def start(
        self, model: DiffusionModel, cond: Condition, noise: Tensor, seeds: Sequence[int]
    ) -> tuple[Condition, Tensor]:
        """The prompts as they are, and the adjusted noise."""
        steps = self.steps_of(model)

        def magnitude(moved: Tensor, rows: Tensor) -> Tensor:
            return norms(difference(model, cond[rows], moved, steps))

        with frozen(model.denoiser):
            moved, _ = descend(
                magnitude, noise, target=self.target, lr=self.lr, weight_decay=0.01, iterations=self.iterations
            )
        return cond, moved


@method(
    "per-sample-noise",
    paper="Han et al. 2025 (per sample)",
    cost="2 evaluations with gradient an update, until the target is met",
    needs=("gradients", "unconditional"),
)
@dataclass(frozen=True)
class PerSampleNoise(BySampler):
    """Start from noise at which the prompt's magnitude at the first step has been brought under a target.

    ‖Δ(x)‖, what the prompt adds to the prediction, is descended over the initial noise by AdamW (weight decay 0.01).

    Paper: Han et al. 2025 (learning rate 0.01 and targets of 0.7 to 1.5 for Stable Diffusion 1.4; 0.1 and 5 to 20 for
    2.0, whose trained output is v).
    Differs: none but for the unit: magnitudes are those of the trained output, and grow with the size of latents.

    Attributes:
        target: The magnitude to get under.
        lr: Learning rate.
        iterations: Updates, at most.
    """

    acts: ClassVar[Acts] = "noise"

    target: float = 0.9
    lr: Scale = 0.01
    iterations: Count = 1000

    def sampler(self, base: Sampler) -> PerSampleSampler:
        """With adjusted noise."""
        return PerSampleSampler(base.steps, base.guidance, self.target, self.lr, self.iterations)
