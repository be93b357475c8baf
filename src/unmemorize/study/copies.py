"""Whether pictures are copies of training pictures, as a function that methods can be given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unmemorize.core.criteria import Criterion
from unmemorize.core.errors import UserError
from unmemorize.core.model import DiffusionModel
from unmemorize.core.results import Match
from unmemorize.core.run import Source
from unmemorize.metrics.duplicates import duplicate_groups
from unmemorize.metrics.similarity import (
    PIXELS,
    References,
    load_sscd,
    match_pixels,
    match_sscd,
    match_sscd_targets,
    match_targets,
    pixel_distances,
    small,
    sscd_criterion,
    sscd_features,
)

LARGE = 256  # pixels from which pictures are compared by a copy-detection network

Matcher = Callable[[Tensor, References], list[Match]]  # pictures and references
TargetMatcher = Callable[[Tensor, References, References], list[Match]]  # pictures, the target of each, references


@dataclass(frozen=True)
class Distances:
    """The plain distances under a comparison, and which pictures are one picture under it.

    `features` takes pictures, bytes or in [0, 1], to what is compared of them, `between` such features and others to
    distances (n, m). `groups` takes pictures (n, 3, 64, 64), the pixels to keep, (n, 64, 64), and the features to a
    group number per picture, the same for duplicates.
    """

    features: Callable[[Tensor], Tensor]
    between: Callable[[Tensor, Tensor], Tensor]
    groups: Callable[[Tensor, Tensor, Tensor], NDArray[np.int64]]


@dataclass(frozen=True)
class CopyCheck:
    """The criterion, the pictures it compares with, and two comparisons.

    `match` takes pictures (n, 3, h, w) to their nearest, `against` each to its own target, one a row of the second.
    Pictures may be on any device and in any precision: they are compared on the CPU in float32.
    """

    criterion: Criterion
    source: Source
    references: References
    match: Callable[[Tensor], list[Match]]
    against: Callable[[Tensor, References], list[Match]]

    def __call__(self, images: Tensor) -> list[bool]:
        """Which of the pictures are copies, verbatim or of a template."""
        return [m.verdict != "none" for m in self.match(images)]


def matcher(sscd: str, recipe: str, device: torch.device | str = "cpu") -> tuple[Criterion, Matcher]:
    """The copy criterion and its comparison: an SSCD file's, or pixels where none is named.

    Raises:
        UserError: The file or the recipe cannot be used.
    """
    return _comparisons(sscd, recipe, device)[:2]


def _comparisons(sscd: str, recipe: str, device: torch.device | str) -> tuple[Criterion, Matcher, TargetMatcher]:
    if not sscd:
        return PIXELS, match_pixels, match_targets
    criterion, embed = sscd_criterion(Path(sscd), recipe), load_sscd(Path(sscd), device)

    @lru_cache(maxsize=1)
    def features(references: References) -> Tensor:
        return sscd_features(references.pixels, criterion, embed)

    return (
        criterion,
        lambda images, references: match_sscd(images, references, criterion, embed, features=features(references)),
        lambda images, targets, _: match_sscd_targets(images, targets, criterion, embed),
    )


def distances(sscd: str, recipe: str, device: torch.device | str = "cpu") -> Distances:
    """The plain distance under the same comparison, and the groups of duplicates.

    Raises:
        UserError: The file or the recipe cannot be used.
    """
    if not sscd:
        return Distances(small, pixel_distances, lambda pictures, keep, _: duplicate_groups(pictures, keep))
    criterion, embed = sscd_criterion(Path(sscd), recipe), load_sscd(Path(sscd), device)
    return Distances(
        lambda pixels: sscd_features(pixels, criterion, embed),
        lambda features, others: 1 - (features @ others.T).double(),
        lambda pictures, keep, features: duplicate_groups(pictures, keep, (features @ features.T).double()),
    )


def copy_check(
    model: DiffusionModel, references: References, source: str, sscd: str = "", recipe: str = "sscd-320"
) -> CopyCheck:
    """Comparison with training pictures; `source` says in a run's record where they come from.

    Raises:
        UserError: They need an SSCD file, or it cannot be used.
    """
    if not sscd and max(model.image_size) >= LARGE:
        raise UserError(
            f"pictures of {max(model.image_size)} px are compared by a copy-detection network: "
            "name its file with --sscd"
        )
    criterion, match, against = _comparisons(sscd, recipe, model.device)
    return CopyCheck(
        criterion,
        references.source(source),
        references,
        lambda images: match(_on_cpu(images), references),
        lambda images, targets: against(_on_cpu(images), targets, references),
    )


def _on_cpu(images: Tensor) -> Tensor:
    """Pictures where the training pictures are: bytes as they are, others in float32."""
    images = images.cpu()
    return images if images.dtype == torch.uint8 else images.float()
