"""NegGrad: ascend the loss of what is to be forgotten while descending that of ordinary pairs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from unmemorize.core.bounds import Count
from unmemorize.core.methods import Subject, Training, method
from unmemorize.core.model import DiffusionModel
from unmemorize.core.results import Pairs
from unmemorize.unlearn.deletion import Ordinary, WithOrdinary
from unmemorize.unlearn.denoising import denoising_errors, draw_noise, draw_rows
from unmemorize.unlearn.finetune import Stateless
from unmemorize.unlearn.loop import Team


@dataclass(frozen=True)
class Ascent(Stateless):
    """The ordinary pairs' loss minus `strength` times the memorized pairs'.

    Paper: a baseline of Alberti et al. 2025, there without the ordinary half; the two together as in Kurmanji et al.
    2023. The ascent has no end: what stops it is the number of updates.

    Args:
        keep: Ordinary pairs and their rows.
        memorized: Pictures to forget, with their prompts.
        strength: The weight of forgetting.
    """

    keep: Ordinary
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


@method(
    "neggrad",
    paper="a baseline of Alberti et al. 2025; with the ordinary half as in Kurmanji et al. 2023",
    cost="16 evaluations with gradient an update",
    needs=("gradients", "pictures"),
)
@dataclass(frozen=True)
class NegGrad(WithOrdinary):
    """Ascend the loss of what is to be forgotten while descending that of ordinary pictures.

    Attributes:
        strength: The weight of forgetting.
    """

    updates: Count = 50  # what it ascends has no end: more only does harm
    strength: float = 1.0

    def objective(self, subject: Subject, forget: Pairs, keep: Pairs, training: Training) -> Ascent:
        """The ordinary pairs' loss minus the memorized pairs'."""
        return Ascent(self.ordinary_half(subject, keep), forget, self.strength)
