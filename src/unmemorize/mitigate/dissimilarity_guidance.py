"""Guidance away from the nearest training picture, which is kept at a distance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from unmemorize.core.errors import UserError
from unmemorize.core.methods import Acts, Mitigation, Subject, method
from unmemorize.core.model import Condition
from unmemorize.core.run import Progress, quiet
from unmemorize.core.sample import Sampler, StepState

SAME = 1e-3  # of the mean distance: nearer than that, there is no direction away


@dataclass(frozen=True)
class DissimilaritySampler(Sampler):
    """A sampler that knows training pictures, `latents` (n, values), and keeps what it draws at a distance."""

    latents: Tensor | None = None
    near: float = 0.5

    def guide(self, state: StepState) -> Tensor:
        """The guided output, moved where the clean latent that it says is too near a training picture's."""
        assert self.latents is not None  # or the mitigation would not have been fitted
        guided = replace(state.cond, output=state.output)
        x0 = guided.x0
        moved = displacement(x0.flatten(1).float(), self.latents.to(x0.device), self.near)
        return guided.with_x0_moved(moved.reshape(x0.shape).to(x0)).output


def displacement(x0: Tensor, known: Tensor, near: float) -> Tensor:
    """What takes each latent (n, values) straight away from the nearest of `known`, to `near` of the mean distance.

    The mean is over all of `known`. What is the nearest one itself goes towards the mean of all; what is farther away
    than that stays: 0.
    """
    distances = torch.cdist(x0, known)
    nearest, place = distances.min(dim=1)
    mean = distances.mean(dim=1)
    center = known[place]
    away = x0 - center
    same = away.norm(dim=1) < SAME * mean
    away = torch.where(same[:, None], known.mean(dim=0) - center, away)
    kept = center + near * mean[:, None] * away / away.norm(dim=1, keepdim=True)
    return torch.where((nearest < near * mean)[:, None], kept - x0, 0.0)


@method(
    "dissimilarity-guidance",
    paper="Chen et al. 2024 (AMG, its dissimilarity guidance)",
    cost="no evaluations; distances to the known training pictures at every step",
    needs=("pictures",),
)
@dataclass(frozen=True)
class DissimilarityGuidance(Mitigation):
    """Keep what a picture would become at a distance from the nearest of the known training pictures.

    At every step the clean latent that the guided prediction says is compared with all known latents. Where the nearest
    lies within a share of the mean distance, it is moved straight away from it to that distance.

    Paper: Chen et al. 2024, anti-memorization guidance, the guidance by dissimilarity alone.
    Differs: distances of latents instead of SSCD of decoded pictures, so that no network and no gradient is needed; a
    distance that is kept instead of a strength that grows. A criterion by pixel distance then counts no copies, almost
    by construction: judge what is left by another criterion, and by eye.

    Attributes:
        near: The share of the mean distance to all known pictures that the nearest one is kept at.
    """

    acts: ClassVar[Acts] = "guidance"

    near: float = 0.5
    latents: Tensor | None = None

    def __post_init__(self) -> None:
        if not 0 < self.near <= 1:
            raise ValueError(f"near={self.near}: name a share above 0, at most 1")

    def fitted(
        self,
        subject: Subject,
        *,
        prompts: Condition | None = None,
        ordinary: Condition | None = None,
        pictures: Tensor | None = None,
        seeds: Sequence[int] = (0,),
        progress: Progress = quiet,
    ) -> DissimilarityGuidance:
        """With the latents of the known training pictures.

        Raises:
            UserError: There are no training pictures.
        """
        if pictures is None or not len(pictures):
            raise UserError(f"{self.name}: away from which pictures? name the training pictures with --references")
        return replace(self, latents=pictures.flatten(1).float())

    @contextmanager
    def applied(self, subject: Subject) -> Iterator[Subject]:
        """The subject, drawn from at a distance.

        Raises:
            UserError: The training pictures are not known yet.
        """
        if self.latents is None:
            raise UserError(f"{self.name} knows no training pictures yet: fit it on some")
        sampler = DissimilaritySampler(subject.sampler.steps, subject.sampler.guidance, self.latents, self.near)
        yield replace(subject, sampler=sampler)
