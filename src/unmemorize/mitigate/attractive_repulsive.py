"""GUARD: away from the prompt's own prediction, towards the one in which no token draws all attention."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unmemorize.core.methods import Acts, method
from unmemorize.core.sample import Sampler, StepState
from unmemorize.mitigate.sampling import BySampler


def attenuated(logits: Tensor, *, alpha: float, threshold: float) -> Tensor:
    """Logits (n, heads, queries, tokens) with those of the tokens that spike multiplied by α.

    A token's peak M_i is the largest of its logits over queries; it spikes where (M_i − mean) / std over all tokens but
    the first is above the threshold. The first, the begin token, never spikes.

    Paper: Zhao et al. 2026 (GUARD).
    Differs: negative logits stay what they are, where multiplied they would rise.
    """
    peaks = logits.amax(dim=2)
    words = peaks[..., 1:]  # without the begin token
    z = (peaks - words.mean(dim=-1, keepdim=True)) / words.std(dim=-1, keepdim=True)
    spikes = z > threshold
    spikes[..., 0] = False
    return torch.where(spikes[:, :, None], logits - (1 - alpha) * logits.clamp(min=0), logits)


@dataclass(frozen=True)
class AttractiveRepulsiveSampler(Sampler):
    """A sampler that is drawn to the attenuated prediction and driven from the prompt's own."""

    alpha: float = 0.3
    threshold: float = 0.1
    repulsion: float = 2.0

    def guide(self, state: StepState) -> Tensor:
        """ε_u + s (ε⁺ − ε_u) − r (ε⁻ − ε_u), ε⁺ attenuated, ε⁻ the prompt's own."""
        model = state.model

        def change(layer: str, logits: Tensor) -> Tensor:
            return attenuated(logits, alpha=self.alpha, threshold=self.threshold)

        with model.attending(change, "down-mid"):
            attracted = state.predict(state.condition).output
        done = state.index / len(model.schedule(self.steps_of(model)).timesteps)
        repulsion = self.repulsion * (1 + math.cos(math.pi * done)) / 2
        return state.guided(-repulsion) + self.guidance_of(model) * (attracted - state.guided(0))


@method(
    "attractive-repulsive",
    paper="Zhao et al. 2026 (GUARD)",
    cost="1 evaluation more a step",
    needs=("attention", "unconditional"),
)
@dataclass(frozen=True)
class AttractiveRepulsive(BySampler):
    """Guide towards the prompt with attention spikes attenuated, and away from the prompt as it is.

    ε_u + s (ε⁺ − ε_u) − r (ε⁻ − ε_u): ε⁻ is the prompt's prediction, ε⁺ the same where tokens that draw the attention
    of a head to them are attenuated, in the layers on the way down and in the middle; s is the guidance scale. Without
    repulsion, at a threshold of 0.01, it is the paper's cross-attention attenuation alone.

    Paper: Zhao et al. 2026 (GUARD: α = 0.3, threshold 0.1, r = 2 falling as a cosine).
    Differs: attenuation never raises a logit. At these thresholds every second token spikes, as in the public code.

    Attributes:
        alpha: α, what positive logits of tokens that spike are multiplied by.
        threshold: How far above the mean, in standard deviations, a token's peak is a spike.
        repulsion: r at the first step.
    """

    acts: ClassVar[Acts] = "attention"
    guided: ClassVar[bool] = True

    alpha: float = 0.3
    threshold: float = 0.1
    repulsion: float = 2.0

    def sampler(self, base: Sampler) -> AttractiveRepulsiveSampler:
        """With both directions of guidance."""
        return AttractiveRepulsiveSampler(base.steps, base.guidance, self.alpha, self.threshold, self.repulsion)
