"""Which prompts are near to others in a model's text embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from unmemorize.core.model import DiffusionModel

NEAR = 0.25  # of the prompts, the share that is nearest
AT_ONCE = 64  # prompts encoded at a time: some families' take megabytes each
FEWEST = 3  # neighbours, where there are as many prompts: fewer have no spread to measure


def neighbours(model: DiffusionModel, prompts: Sequence[str], memorized: Sequence[str]) -> tuple[bool, ...]:
    """Which prompts are neighbours of memorized ones: the quarter whose mean embeddings are nearest to theirs."""

    def means(texts: Sequence[str]) -> Tensor:
        parts = []
        for start in range(0, len(texts), AT_ONCE):
            cond = model.encode(list(texts[start : start + AT_ONCE]))
            weight = torch.ones(cond.embeds.shape[:2]) if cond.mask is None else cond.mask
            weight = weight.to(cond.embeds)[..., None]
            parts.append(F.normalize((cond.embeds * weight).sum(1) / weight.sum(1)))
        return torch.cat(parts)

    nearest = (means(prompts) @ means(memorized).T).max(dim=1).values
    count = max(round(NEAR * len(prompts)), min(FEWEST, len(prompts)))
    rank = nearest.argsort(descending=True).argsort()
    return tuple((rank < count).tolist())
