"""Other padding: CLIP fills a prompt up with copies of its end token, which carry what was memorized."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unmemorize.core.errors import NotApplicable
from unmemorize.core.methods import Acts, method
from unmemorize.core.model import Condition, DiffusionModel, typed
from unmemorize.mitigate.perturb import Perturbation


def padding(cond: Condition) -> Tensor:
    """Which tokens are padding, (n, tokens) bool: none where a condition says nothing of it, as one that was drawn."""
    if cond.mask is None:
        return torch.zeros(cond.embeds.shape[:2], dtype=torch.bool, device=cond.embeds.device)
    return cond.mask == 0


@method("padding-masked", paper="Kim and No 2026", cost="none", needs=("tokens",))
@dataclass(frozen=True)
class PaddingMasked(Perturbation):
    """Set the embeddings of most of the padding to zero, from the end token on.

    Paper: Kim and No 2026 (70% of the padding nearest to the end token).

    Attributes:
        share: How much of the padding.
    """

    acts: ClassVar[Acts] = "condition"

    share: float = 0.7

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share has to lie between 0 and 1, not at {self.share}")

    def changed(self, model: DiffusionModel, cond: Condition, seeds: Sequence[int]) -> Condition:
        """The same prompts with part of their padding at zero.

        Raises:
            NotApplicable: Prompts are not read through CLIP alone.
        """
        _require_clip(model)
        pads = padding(cond)
        near = torch.zeros_like(pads)
        for row, own in enumerate(pads):
            places = own.nonzero()[:, 0]
            near[row, places[: math.ceil(self.share * len(places))]] = True
        return cond.with_embeds(cond.embeds.masked_fill(near[..., None], 0))


@method("padding-replaced", paper="Kim and No 2026", cost="none", needs=("tokens",))
@dataclass(frozen=True)
class PaddingReplaced(Perturbation):
    """Encode prompts with an exclamation mark in the place of every padding token, and zero the end token's embedding.

    Paper: Kim and No 2026 (the padding of Stable Diffusion 2 in a model of version 1).
    Differs: the mark is a word of its own, as a prompt's would be. Tokens before the padding do not see it, since CLIP
    reads from left to right: an embedding that was searched keeps them.

    Attributes:
        token: What stands in the place of padding.
        end: Whether the end token's embedding is set to zero.
    """

    acts: ClassVar[Acts] = "condition"

    token: str = "!"
    end: bool = True

    def changed(self, model: DiffusionModel, cond: Condition, seeds: Sequence[int]) -> Condition:
        """The same prompts with other padding.

        Raises:
            NotApplicable: Prompts are not read through one CLIP encoder that pads with its end token.
        """
        _require_clip(model)
        if cond.pooled is not None:
            raise NotApplicable("prompts are read through two encoders, each with padding of its own")
        pads = padding(cond)
        if cond.ids is None or not pads.any():
            return cond
        ends = (~pads).sum(dim=1) - 1
        end = cond.ids.gather(1, ends[:, None])
        if (cond.ids != end)[pads].any():
            raise NotApplicable("padding is no copy of the end token here: there is nothing to replace")
        word = model.encode([self.token]).ids
        assert word is not None  # since prompts have ids
        ids = torch.where(pads, word[0, 1], cond.ids)
        table = typed(model).token_table
        with torch.no_grad():
            embeds = typed(model).encode_tokens(ids, table[ids]).embeds
        embeds = torch.where(pads[..., None], embeds, cond.embeds)
        if self.end:
            embeds[torch.arange(len(embeds)), ends] = 0
        return cond.with_embeds(embeds)


def _require_clip(model: DiffusionModel) -> None:
    """Refuse what is read through other encoders.

    Raises:
        NotApplicable: It is.
    """
    typed(model).token_table  # noqa: B018  (raises where there is none)
