"""Naive deletion: fine-tune on ordinary pairs alone and hope that what is not shown is forgotten."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from unmemorize.core.bounds import Count
from unmemorize.core.methods import Subject, Training, method
from unmemorize.core.model import Condition, DiffusionModel
from unmemorize.core.results import Pairs
from unmemorize.unlearn.denoising import denoising_errors, draw_noise, draw_rows, with_dropped
from unmemorize.unlearn.finetune import Finetuning, Stateless
from unmemorize.unlearn.loop import Team


@dataclass(frozen=True)
class Ordinary(Stateless):
    """The denoising loss of ordinary pairs: a baseline, and the ordinary half of other objectives.

    A tenth of the captions is dropped, as in pretraining: guidance needs the empty prompt as it was.

    Paper: "naive deletion" of Alberti et al. 2025.

    Args:
        ordinary: What the model is to keep.
        empty: The empty prompt, one row.
        batch: Rows of an update.
        dropped: The share of captions that is dropped.
        seed: Of rows, timesteps and noise.
    """

    ordinary: Pairs
    empty: Condition
    batch: int = 8
    dropped: float = 0.1
    seed: int = 0

    def loss(self, model: DiffusionModel, update: int, team: Team) -> Tensor:
        """The mean over this process's rows."""
        share = team.share(self.batch)
        rows = draw_rows(len(self.ordinary), self.batch, share, update=update, name=(self.seed, 0))
        latents, captions = self.ordinary.latents[rows.items], self.ordinary.captions[rows.items]
        captions = with_dropped(captions, self.empty, rows.coins() < self.dropped)
        return denoising_errors(model, latents, captions, draw_noise(latents, rows)).mean()

    def backward(self, model: DiffusionModel, update: int, team: Team) -> dict[str, Tensor]:
        """One evaluation a row."""
        loss = self.loss(model, update, team)
        loss.backward()
        return {"ordinary": loss}


@dataclass(frozen=True)
class WithOrdinary(Finetuning):
    """A method of which one half is the denoising loss of ordinary pairs.

    Attributes:
        batch: Rows of either kind in an update.
    """

    batch: Count = 8

    def ordinary_half(self, subject: Subject, keep: Pairs) -> Ordinary:
        """The denoising loss of ordinary pairs."""
        return Ordinary(keep, subject.model.encode([""]), batch=self.batch, seed=self.seed)


@method(
    "deletion",
    paper="a baseline of Alberti et al. 2025",
    cost="8 evaluations with gradient an update",
    needs=("gradients", "pictures"),
)
@dataclass(frozen=True)
class Deletion(WithOrdinary):
    """Fine-tune on ordinary pictures alone."""

    def objective(self, subject: Subject, forget: Pairs, keep: Pairs, training: Training) -> Ordinary:
        """The denoising loss of ordinary pairs."""
        return self.ordinary_half(subject, keep)
