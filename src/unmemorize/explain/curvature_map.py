"""The curvature-difference map: where in a picture the prompt leaves less freedom than there is without it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from unmemorize.core.bounds import Draws
from unmemorize.core.hooks import frozen
from unmemorize.core.methods import Explainer, Subject, method
from unmemorize.core.model import Condition, DiffusionModel
from unmemorize.core.results import Regions
from unmemorize.core.sample import Step, generators
from unmemorize.explain.score_map import last_steps


def curvature_difference(
    model: DiffusionModel, step: Step, cond: Condition, seeds: Sequence[int], probes: int
) -> Tensor:
    """−diag ∂(s_c − s_u)/∂x at a step by Hutchinson's estimate, (n, c, h, w).

    The mean of v ∘ Jᵀv over random signs v, of each picture's own stream; exact where J is diagonal.
    """
    uncond, streams = model.unconditional(len(cond)), generators(seeds)
    total = torch.zeros_like(step.x, dtype=torch.float64)
    with frozen(model.denoiser), torch.enable_grad():
        for _ in range(probes):
            x = step.scaled.detach().clone().requires_grad_()
            difference = model.predict(x, step.t, cond).score - model.predict(x, step.t, uncond).score
            signs = torch.stack([torch.randint(0, 2, x.shape[1:], generator=g) * 2 - 1 for g in streams]).to(x)
            (product,) = torch.autograd.grad((difference * signs).sum(), x)
            total -= signs * product
    return total / probes


@method(
    "curvature-map",
    paper="Kim and Lee 2026",
    cost="beyond sampling, 2 evaluations with gradient a probe and seed, 16 probes",
    needs=("gradients", "unconditional"),
)
@dataclass(frozen=True)
class CurvatureMap(Explainer):
    """Where in the pictures of a prompt their variance has collapsed, beyond what it is without the prompt.

    ReLU(−Σ diag ∂(s_c − s_u)/∂x), summed over channels, at the last sampling step. What is plain anyway, such as an
    even background, curves alike in both and is left out.

    Paper: Kim and Lee 2026 (16 probes, the last step).

    Attributes:
        probes: Random signs of Hutchinson's estimate.
    """

    says: ClassVar[Literal["words", "regions"]] = "regions"

    probes: Draws = 16

    def explain(self, subject: Subject, prompt: str, *, seeds: Sequence[int]) -> Regions:
        """The value of every place, one picture a seed."""
        model, cond = subject.model, subject.model.encode([prompt] * len(seeds))
        with model.counted() as cost:
            *_, step = last_steps(subject, cond, seeds, 0.0)
            curvature = curvature_difference(model, step, cond, seeds, self.probes)
        # At least in single precision: half precision does not reach so far.
        maps = curvature.sum(dim=1).clamp(min=0).to(torch.promote_types(step.x.dtype, torch.float32))
        return Regions(prompt, step.x_next.cpu(), maps.cpu(), cost.forward)
