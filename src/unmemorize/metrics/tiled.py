"""The tiled distance with a nearest-neighbour ratio: a criterion for large pictures that needs no network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from unmemorize.core.choose import evenly
from unmemorize.core.criteria import Criterion
from unmemorize.core.results import Match
from unmemorize.metrics.exact import interval
from unmemorize.metrics.similarity import References, duplicates_of, neighbourhood, pixel_distances, small

SIZES = (64, 128)  # pixels a side, to which pictures are reduced: by noise and small shifts detail is no copy any more
TILES = 4  # a side
QUERIES = 1000  # pictures that an error rate is measured on, at most
ROWS = 64  # of them compared at once
TILED = Criterion("tiled-ratio", threshold=0.5, recipe="tiles-4x4-64-128px-50nn")


def tiled_distances(images: Tensor, references: Tensor) -> Tensor:
    """The root mean square pixel difference of every image to every reference in its worst tile: (n, m).

    Two pictures that share a background differ in some tile.

    Paper: Carlini et al. 2023, section 4.2: the largest distance of 16 tiles of 128 px.
    Differs: the tiles are those of reduced pictures, a quarter of a side each.
    """
    worst = torch.zeros(len(images), len(references), dtype=torch.double)
    for one, other in zip(_tiles(images), _tiles(references), strict=True):
        worst = torch.maximum(worst, pixel_distances(one, other))
    return worst


def match_tiled(images: Tensor, references: References, criterion: Criterion = TILED) -> list[Match]:
    """Match each image with the reference that is nearest for its neighbourhood; templates are not seen.

    The value is the distance to the nearest reference over the mean distance to the 50 nearest others, at the size, of
    `SIZES`, at which it is smaller.

    Paper: Carlini et al. 2023, section 4.2, the tiled distance and the nearest-neighbour ratio.
    Differs: the paper uses one of the two for each of its models; here both are one. As in `match_pixels` duplicates of
    the nearest reference are no neighbours, and a handful is completed.
    """
    nearest, distance, value = _nearest(images, references)
    matches = []
    for place, plain, ratio in zip(nearest.tolist(), distance.tolist(), value.tolist(), strict=True):
        matches.append(Match(references.names[place], plain, ratio, "verbatim" if criterion(ratio) else "none"))
    return matches


def match_tiled_targets(
    images: Tensor, targets: References, references: References, criterion: Criterion = TILED
) -> list[Match]:
    """Match each image with its own target, row by row, whichever reference is nearest; the value is the same."""
    best = torch.full((2, len(images)), torch.inf, dtype=torch.double)
    for size in SIZES:
        x, own, pictures = small(images, size), small(targets.pixels, size), _reduced(references, size)
        tiles = zip(_tiles(x), _tiles(own), strict=True)
        each = [(one.double() - other.double()).square().mean(dim=(1, 2, 3)).sqrt() for one, other in tiles]
        distance = torch.stack(each).amax(dim=0)
        best = _smaller(best, distance, distance / neighbourhood(tiled_distances(x, pictures), own, pictures))
    matches = []
    for name, plain, ratio in zip(targets.names, *best.tolist(), strict=True):
        matches.append(Match(name, plain, ratio, "verbatim" if criterion(ratio) else "none"))
    return matches


def with_error(criterion: Criterion, references: References) -> Criterion:
    """The criterion with the share of the references that it calls copies of others: none of them is.

    Each is compared, as it is and mirrored, with all others but its own duplicates; of duplicates one is compared.
    Where there is nothing to compare with, there is no error rate.
    """
    pictures = _reduced(references, SIZES[0])
    is_query = torch.zeros(len(references), dtype=torch.bool)
    is_query[evenly(len(references), QUERIES)] = True
    copies, count = 0, 0
    for start in range(0, len(references), ROWS):
        rows = torch.arange(start, min(start + ROWS, len(references)))
        same = duplicates_of(pictures[rows], pictures)
        same[torch.arange(len(rows)), rows] = True
        first = same.int().argmax(dim=1) == rows
        mirrored = same | duplicates_of(pictures[rows].flip(-1), pictures)
        chosen = is_query[rows] & first & ~mirrored.all(dim=1)
        if not chosen.any():
            continue
        images = references.pixels[rows[chosen]]
        _, _, plain = _nearest(images, references, same[chosen])
        _, _, flipped = _nearest(images.flip(-1), references, mirrored[chosen])
        copies += sum(criterion(ratio) for ratio in torch.minimum(plain, flipped).tolist())
        count += int(chosen.sum())
    if not count:
        return criterion
    rate = copies / count
    return replace(criterion, error=rate, error_high=interval(rate, count).high, measured_on=count)


def _nearest(images: Tensor, references: References, left_out: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Place, distance and value of each image's nearest reference, (n,) each; `left_out` (n, m) are not compared."""
    best = torch.full((3, len(images)), torch.inf, dtype=torch.double)
    for size in SIZES:
        x, pictures = small(images, size), _reduced(references, size)
        distances = tiled_distances(x, pictures)
        if left_out is not None:
            distances = distances.masked_fill(left_out, torch.inf)
        distance, place = distances.min(dim=1)
        ratio = distance / neighbourhood(distances, pictures[place], pictures)
        best = _smaller(best, place, distance, ratio)
    return best[0].long(), best[1], best[2]


def _smaller(best: Tensor, *rows: Tensor) -> Tensor:
    """Of two sets of rows the columns whose last value is smaller."""
    other = torch.stack([row.double() for row in rows])
    return torch.where(other[-1] < best[-1], other, best)


@lru_cache(maxsize=len(SIZES))
def _reduced(references: References, size: int) -> Tensor:
    return small(references.pixels, size)


def _tiles(pictures: Tensor) -> Iterator[Tensor]:
    side = pictures.shape[-1] // TILES
    for row in pictures.split(side, dim=-2):
        yield from row.split(side, dim=-1)
