"""What measurements on the shipped models share: how pictures are sampled, and which of them are copies."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from unmemorize.core.results import Match
from unmemorize.core.sample import Sampler
from unmemorize.metrics.similarity import References, match_targets

STEPS, GUIDANCE = 16, 7.5
SAMPLER = Sampler(STEPS, GUIDANCE)


def match_closest(images: torch.Tensor, places: Sequence[Sequence[int]], pictures: References) -> list[Match]:
    """Each image beside the closest of the training pictures at its places, copies first."""
    rows = []
    for row, of_row in enumerate(places):
        rows += [row] * len(of_row)
    targets = pictures[[place for of_row in places for place in of_row]]
    closest: dict[int, Match] = {}
    for row, match in zip(rows, match_targets(images[rows], targets, pictures), strict=True):
        rivals = [match, closest[row]] if row in closest else [match]
        closest[row] = min(rivals, key=lambda rival: (rival.verdict == "none", rival.value))
    return list(closest.values())


def are_copies(matches: Sequence[Match]) -> list[bool]:
    """Which of the pictures are copies of what they stand beside."""
    return [match.verdict != "none" for match in matches]
