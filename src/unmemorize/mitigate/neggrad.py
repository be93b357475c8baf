"""NegGrad: ascend the loss of what is to be forgotten while descending that of ordinary pairs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from unmemorize.core.model import DiffusionModel
from unmemorize.mitigate.deletion import Deletion
from unmemorize.mitigate.denoising import Pairs, denoising_errors, draw_noise, draw_rows
from unmemorize.mitigate.finetune import Stateless, Team


@dataclass(frozen=True)
class NegGrad(Stateless):
    """The ordinary pairs' loss minus `strength` times the memorized pairs'.

    Paper: a baseline of Alberti et al. 2025, there without the ordinary half; the two together as in Kurmanji et al.
    2023. The ascent has no end: what stops it is the number of updates.

    Args:
        keep: Ordinary pairs and their rows.
        memorized: Pictures to forget, with their prompts.
        strength: The weight of forgetting.
    """

    keep: Deletion
    memorized: Pairs
    strength: float = 1.0

    def backward(self, model: DiffusionModel, update: int, team: Team) -> dict[str, Tensor]:
        """Two evaluations: one an ordinary row, one a memorized row, as many of either."""
        keep, count = self.keep, len(self.memorized)
        rows = draw_rows(count, keep.batch, team.share(keep.batch), update=update, name=(keep.seed, 1))
        latents, captions = self.memorized.latents[rows.items], self.memorized.captions[rows.items]
        forget = denoising_errors(model, latents, captions, draw_noise(latents, rows)).mean()
        ordinary = keep.loss(model, update, team)
        (ordinary - self.strength * forget).backward()
        return {"ordinary": ordinary, "forget": forget}
