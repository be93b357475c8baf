"""SAIL: sharpness-aware initialization, noise around which a prompt's pull is weak."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unmemorize.core.bounds import Count, Draws, Scale
from unmemorize.core.hooks import frozen
from unmemorize.core.methods import Acts, method
from unmemorize.core.model import Condition, DiffusionModel
from unmemorize.core.sample import Sampler, generators
from unmemorize.mitigate.initial_noise import descend, difference, directions, norms
from unmemorize.mitigate.sampling import BySampler


def sail_loss(model: DiffusionModel, cond: Condition, noise: Tensor, steps: int, alpha: float) -> Tensor:
    """‖Δ(x − Δ(x) / ‖Δ(x)‖)‖ + α (‖x‖ − √D) of every row, (n,): what a prompt says one step up, and the noise's length.

    Paper: Jeon et al. 2025, algorithm 2 as its public code has it: there the loss for which thresholds are published is
    this one, without the constant α √D, which is 6.4 of them at 4 × 64 × 64.
    Differs: the step is one along the score, −Δ, as in the paper's equation, from the noise as it is then, and is
    differentiated; the public code steps along Δ and keeps the first direction.
    """
    score = -directions(difference(model, cond, noise, steps))
    ahead = norms(difference(model, cond, noise + score, steps))
    return ahead + alpha * (norms(noise) - math.sqrt(noise[0].numel()))


@dataclass(frozen=True)
class SailSampler(Sampler):
    """A sampler that starts from the first of some candidates whose loss comes under the target."""

    target: float = 1.8
    alpha: float = 0.05
    lr: float = 0.05
    iterations: int = 10
    candidates: int = 8

    def start(
        self, model: DiffusionModel, cond: Condition, noise: Tensor, seeds: Sequence[int]
    ) -> tuple[Condition, Tensor]:
        """The prompts as they are; of every picture the first noise under the target, or else the lowest."""
        steps, streams = self.steps_of(model), generators(seeds)
        lowest, best = torch.full((len(noise),), math.inf, device=noise.device), noise.clone()
        for _ in range(self.candidates):
            drawn = model.noise(streams)  # of each stream the first is the picture's own noise
            left = (lowest > self.target).nonzero()[:, 0]
            if not len(left):
                break

            def loss(moved: Tensor, rows: Tensor, left: Tensor = left) -> Tensor:
                return sail_loss(model, cond[left[rows]], moved, steps, self.alpha)

            with frozen(model.denoiser):
                moved, values = descend(
                    loss, drawn[left], target=self.target, lr=self.lr, weight_decay=0.0, iterations=self.iterations
                )
            better = values.to(lowest) < lowest[left]
            lowest[left[better]], best[left[better]] = values[better].to(lowest), moved[better]
        return cond, best


@method(
    "sail",
    paper="Jeon et al. 2025 (SAIL)",
    cost="4 evaluations with gradient an update, at most 10 updates of 8 candidates",
    needs=("gradients", "unconditional"),
)
@dataclass(frozen=True)
class Sail(BySampler):
    """Start from noise around which the probability is not sharp: where the prompt, followed one step, says little.

    The loss is descended over the initial noise by Adam; noise that is not under the target after so many updates gives
    place to another candidate, drawn from the picture's own stream.

    Paper: Jeon et al. 2025 (SAIL: α = 0.05, learning rate 0.05, at most 10 updates of 8 candidates, and losses of 7.6
    to 9 for Stable Diffusion 1.4; α = 0.01 and 4 to 6 for 2.0).
    Differs: the target is the published one, 8.2, less α √D at the size of its latents. Candidates are tried one after
    another, and if none gets there the lowest is taken, where the public code loosens the target and goes on.

    Attributes:
        target: The loss to get under.
        alpha: α, the weight of the noise's length, which keeps it near that of Gaussian noise.
        lr: Learning rate.
        iterations: Updates of a candidate, at most.
        candidates: Initial noise tried, at most.
    """

    acts: ClassVar[Acts] = "noise"

    target: float = 1.8
    alpha: float = 0.05
    lr: Scale = 0.05
    iterations: Count = 10
    candidates: Draws = 8

    def sampler(self, base: Sampler) -> SailSampler:
        """With noise that SAIL chose."""
        return SailSampler(
            base.steps, base.guidance, self.target, self.alpha, self.lr, self.iterations, self.candidates
        )
