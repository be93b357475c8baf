"""Maps of a sampling step: where a prompt's end token has attention, and where the prompt changes the score."""

from __future__ import annotations

from math import isqrt

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from unmemorize.core.errors import NotApplicable
from unmemorize.core.model import Condition
from unmemorize.core.sample import Step


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


def score_map(step: Step) -> Tensor:
    """The squared difference of the scores with and without the prompt at every place, over channels, (n, h, w).

    Scores are −ε / σ. At least in single precision: squares of half-precision scores overflow.
    """
    assert step.uncond is not None  # or guidance were off
    difference = step.cond.score - step.uncond.score
    return difference.to(torch.promote_types(difference.dtype, torch.float32)).square().sum(dim=1)
