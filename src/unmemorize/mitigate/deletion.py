"""Naive deletion: fine-tune on ordinary pairs alone and hope that what is not shown is forgotten."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unmemorize.core.model import DiffusionModel
from unmemorize.mitigate.denoising import Pairs, denoising_errors, draw_noise, draw_rows
from unmemorize.mitigate.finetune import Stateless, Team


@dataclass(frozen=True)
class Deletion(Stateless):
    """The denoising loss of ordinary pairs: a baseline, and the ordinary half of other objectives.

    A tenth of the captions is dropped, as in pretraining: guidance needs the empty prompt as it was.

    Paper: "naive deletion" of Alberti et al. 2025.

    Args:
        ordinary: What the model is to keep.
        empty: The empty prompt's embedding, (tokens, width).
        batch: Rows of an update.
        dropped: The share of captions that is dropped.
        seed: Of rows, timesteps and noise.
    """

    ordinary: Pairs
    empty: Tensor
    batch: int = 8
    dropped: float = 0.1
    seed: int = 0

    def loss(self, model: DiffusionModel, update: int, team: Team) -> Tensor:
        """The mean over this process's rows."""
        share = team.share(self.batch)
        rows = draw_rows(len(self.ordinary), self.batch, share, update=update, name=(self.seed, 0))
        latents, embeds = self.ordinary.latents[rows.items], self.ordinary.embeds[rows.items]
        dropped = (rows.coins() < self.dropped).to(embeds.device)
        embeds = torch.where(dropped[:, None, None], self.empty, embeds)
        return denoising_errors(model, latents, embeds, draw_noise(model, latents, rows)).mean()

    def backward(self, model: DiffusionModel, update: int, team: Team) -> dict[str, Tensor]:
        """One evaluation a row."""
        loss = self.loss(model, update, team)
        loss.backward()
        return {"ordinary": loss}
