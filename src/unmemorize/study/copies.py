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
from unmemorize.core.model import DiffusionModel
from unmemorize.core.results import Match
from unmemorize.core.run import Source
from unmemorize.metrics.duplicates import duplicate_groups
from unmemorize.metrics.similarity import (
    PIXELS,
    References,
    match_pixels,
    match_targets,
    pixel_distances,
    small,
    with_mirrored,
)
from unmemorize.metrics.sscd import load_sscd, match_sscd, match_sscd_targets, sscd_criterion, sscd_features
from unmemorize.metrics.tiled import TILED, match_tiled, match_tiled_targets, with_error

LARGE = 256  # pixels from which pictures are compared by a copy-detection network, or else tile by tile

Matcher = Callable[[Tensor, References], list[Match]]  # pictures and references
# From the target of each picture, and the references, to a function of some of the pictures and their rows.
TargetMatcher = Callable[[References, References], Callable[[Tensor, list[int]], list[Match]]]


@dataclass(frozen=True)
class Distances:
    """The plain distance of a comparison, and its groups of duplicates.

    Attributes:
        features: Of pictures, bytes or in [0, 1]: what is compared.
        of_references: The features of training pictures, computed once.
        between: Distances (n, m) of n features to m others.
        groups: Of pictures (n, 3, 64, 64), the pixels that count, (n, 64, 64), and the features: a group number per
            picture, the same for duplicates.
    """

    features: Callable[[Tensor], Tensor]
    of_references: Callable[[References], Tensor]
    between: Callable[[Tensor, Tensor], Tensor]
    groups: Callable[[Tensor, Tensor, Tensor], NDArray[np.int64]]


@dataclass(frozen=True)
class CopyCheck:
    """The criterion, the pictures it compares with, and two comparisons.

    `match` takes pictures (n, 3, h, w) to their nearest, `against` each to its own target, one a row of the second.
    Where a picture is no copy, its mirror image is looked at as well. Pictures may be on any device and in any
    precision: they are compared on the CPU in float32.
    """

    criterion: Criterion
    source: Source
    references: References
    match: Callable[[Tensor], list[Match]]
    against: Callable[[Tensor, References], list[Match]]

    def __call__(self, images: Tensor) -> list[bool]:
        """Which of the pictures are copies, verbatim or of a template."""
        return [match.copied for match in self.match(images)]


def check_network(sscd: str, recipe: str) -> None:
    """Refuse an SSCD file that cannot be used, where one is named.

    Raises:
        UserError: The file or the recipe cannot be used.
    """
    _comparisons(sscd, recipe, "cpu", large=True)


def _comparisons(
    sscd: str, recipe: str, device: torch.device | str, *, large: bool
) -> tuple[Criterion, Matcher, TargetMatcher]:
    if not sscd and large:
        return TILED, match_tiled, _row_by_row(match_tiled_targets)
    if not sscd:
        return PIXELS, match_pixels, _row_by_row(match_targets)
    criterion, embed, features = _network(sscd, recipe, torch.device(device))

    def match(images: Tensor, references: References) -> list[Match]:
        return match_sscd(images, references, criterion, embed, features=features(references))

    def against(targets: References, _: References) -> Callable[[Tensor, list[int]], list[Match]]:
        own = sscd_features(targets.pixels, criterion, embed)
        return lambda images, rows: match_sscd_targets(images, targets[rows], criterion, embed, features=own[rows])

    return criterion, match, against


@lru_cache(maxsize=1)
def _network(
    sscd: str, recipe: str, device: torch.device
) -> tuple[Criterion, Callable[[Tensor], Tensor], Callable[[References], Tensor]]:
    """The criterion, the network, and the features of training pictures, which are computed once."""
    criterion, embed = sscd_criterion(Path(sscd), recipe), load_sscd(Path(sscd), device)

    @lru_cache(maxsize=1)
    def features(references: References) -> Tensor:
        return sscd_features(references.pixels, criterion, embed)

    return criterion, embed, features


def _row_by_row(match: Callable[[Tensor, References, References], list[Match]]) -> TargetMatcher:
    return lambda targets, references: lambda images, rows: match(images, targets[rows], references)


def distances(sscd: str, recipe: str, device: torch.device | str = "cpu") -> Distances:
    """The plain distance of the comparison that `copy_check` makes, and the groups of duplicates.

    Raises:
        UserError: The file or the recipe cannot be used.
    """
    if not sscd:
        return Distances(
            small,
            lambda references: references.small,
            pixel_distances,
            lambda pictures, keep, _: duplicate_groups(pictures, keep),
        )
    criterion, embed, features = _network(sscd, recipe, torch.device(device))
    return Distances(
        lambda pixels: sscd_features(pixels, criterion, embed),
        features,
        lambda features, known: 1 - (features @ known.T).double(),
        lambda pictures, keep, features: duplicate_groups(pictures, keep, (features @ features.T).double()),
    )


def copy_check(
    model: DiffusionModel, references: References, source: str, sscd: str = "", recipe: str = "sscd-320"
) -> CopyCheck:
    """Comparison with training pictures; `source` says in a run's record where they come from.

    By the SSCD file, where one is named; else small pictures pixel by pixel and those from `LARGE` on tile by tile,
    with the error rate of the latter on these pictures.

    Raises:
        UserError: The SSCD file cannot be used.
    """
    criterion, match, against = _comparisons(sscd, recipe, model.device, large=max(model.image_size) >= LARGE)
    if criterion is TILED:
        criterion = with_error(criterion, references)
    return CopyCheck(
        criterion,
        references.source(source),
        references,
        lambda images: with_mirrored(_on_cpu(images), lambda pictures, _: match(pictures, references)),
        lambda images, targets: with_mirrored(_on_cpu(images), against(targets, references)),
    )


def _on_cpu(images: Tensor) -> Tensor:
    """Pictures on the CPU, where the training pictures are: bytes stay bytes, others become float32."""
    images = images.cpu()
    return images if images.dtype == torch.uint8 else images.float()
