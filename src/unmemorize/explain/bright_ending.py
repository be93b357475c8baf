"""Bright Ending: where in a picture the end token has attention at the last step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from unmemorize.core.errors import NotApplicable
from unmemorize.core.methods import Explainer, Subject, method
from unmemorize.core.model import Condition
from unmemorize.core.results import Regions
from unmemorize.core.sample import Step, trajectory


def end_attention(step: Step, cond: Condition, height: int, width: int) -> Tensor:
    """Attention to the end token at a step, (n, h, w), scaled to the latents' size.

    The mean over heads and over the layers of the finest attention on the way down.

    Raises:
        NotApplicable: The family's adapter gives no attention, or prompts have no end token that is known.
    """
    if cond.mask is None:
        raise NotApplicable("prompts have no end token that is known")
    end = cond.mask.sum(dim=1) - 1
    layers: list[Tensor] = []

    def keep(layer: str, logits: Tensor) -> Tensor:
        rows = torch.arange(len(logits), device=logits.device)
        layers.append(logits.detach().float().softmax(dim=-1).mean(dim=1)[rows, :, end])
        return logits

    with step.model.attending(keep, "down-mid"), torch.no_grad():
        step.predict(cond)
    finest = max(layer.shape[1] for layer in layers)
    attention = torch.stack([layer for layer in layers if layer.shape[1] == finest]).mean(dim=0)
    rows = isqrt(finest * height // width)  # places are queries, row by row
    return interpolate(attention.unflatten(1, (rows, -1))[:, None], (height, width), mode="bilinear")[:, 0]


@method(
    "bright-ending",
    paper="Chen et al. 2025",
    cost="1 evaluation a seed beyond sampling",
    needs=("attention",),
)
@dataclass(frozen=True)
class BrightEnding(Explainer):
    """Where in the pictures of a prompt its end token has attention at the last step: there the memorized is drawn.

    Averaged over heads and over the finest layers of cross-attention on the way down.

    Paper: Chen et al. 2025 (Stable Diffusion's two layers at 64 × 64).
    Differs: attention is scaled to the size of latents where its layers are coarser.
    """

    says: ClassVar[Literal["words", "regions"]] = "regions"

    def explain(self, subject: Subject, prompt: str, *, seeds: Sequence[int]) -> Regions:
        """The value of every place, one picture a seed."""
        model, cond = subject.model, subject.model.encode([prompt] * len(seeds))
        with model.counted() as cost:
            *_, step = trajectory(model, cond, seeds=seeds, sampler=subject.sampler)
            maps = end_attention(step, cond, *step.x.shape[2:])
        return Regions(prompt, step.x_next.cpu(), maps.cpu(), cost.forward)
