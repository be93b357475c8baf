"""Is a generated picture a copy? Pixel distance with a nearest-neighbour ratio; the pictures to compare with."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor

from unmemorize.core.criteria import Criterion
from unmemorize.core.errors import UserError
from unmemorize.core.results import Match
from unmemorize.core.run import Source, digest

Box = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class References:
    """Training pictures: names, pixels (n, 3, h, w), the box that varies in a template, captions.

    The pixels are bytes, uint8, as pictures are read; or in [0, 1]. What is compared of them is computed once.
    """

    names: tuple[str, ...]
    pixels: Tensor
    masks: tuple[Box | None, ...]
    captions: tuple[str | None, ...]

    def __getitem__(self, rows: Sequence[int]) -> References:
        """Some of the pictures, in the order asked for, also more than once."""
        names = tuple(self.names[i] for i in rows)
        masks = tuple(self.masks[i] for i in rows)
        captions = tuple(self.captions[i] for i in rows)
        return References(names, self.pixels[list(rows)], masks, captions)

    @classmethod
    def joined(cls, parts: Sequence[References]) -> References:
        """The pictures of all parts, one part after the other."""
        return cls(
            names=tuple(chain.from_iterable(part.names for part in parts)),
            pixels=torch.cat([part.pixels for part in parts]),
            masks=tuple(chain.from_iterable(part.masks for part in parts)),
            captions=tuple(chain.from_iterable(part.captions for part in parts)),
        )

    @property
    def prompts(self) -> list[str]:
        """The captions as prompts: the empty prompt for a picture without one."""
        return [caption or "" for caption in self.captions]

    def named(self, names: Collection[str]) -> References:
        """Those with one of these names."""
        return self[[i for i, name in enumerate(self.names) if name in names]]

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the pictures, their names, boxes and captions."""
        facts = repr((self.names, self.masks, self.captions)).encode(errors="surrogateescape")
        return digest(chain([facts], (picture.cpu().numpy().tobytes() for picture in self.pixels)))

    def source(self, place: str) -> Source:
        """Where they come from and what they hold, for a run's record."""
        return Source(source=place, sha256=self.digest, count=len(self))

    @property
    def images(self) -> Tensor:
        """All of them in [0, 1]; of a whole training set take `batches`."""
        return unit(self.pixels)

    def batches(self, size: int) -> Iterator[Tensor]:
        """The pictures in [0, 1], so many at a time."""
        for part in self.pixels.split(size):
            yield unit(part)

    @cached_property
    def small(self) -> Tensor:
        """The pictures at the size they are compared at, (n, 3, 64, 64)."""
        return small(self.pixels)

    @cached_property
    def keep(self) -> Tensor:
        """Which pixels of each picture count at that size, (n, 64, 64): 0 in the box that varies."""
        keep = torch.ones(len(self), SIZE, SIZE)
        for row, box in enumerate(self.masks):
            if box is not None:
                left, top, right, bottom = box
                counts = torch.ones(1, 1, *self.pixels.shape[-2:])
                counts[..., top:bottom, left:right] = 0
                keep[row] = small(counts)[0, 0]
        return keep


SIZE = 64  # pictures are compared at this size: pixels of a large picture shift without its being another picture
NEIGHBOURS = 50
DUPLICATE = 0.3  # references nearer than this share of the picture's contrast are one picture
FEW = 10  # with fewer other references than this, unseen ones count as unrelated pictures of the same contrast
# Calibrated on pictures that no denoiser made: see docs/testbed.md.
BATCH = 64  # pictures that are made smaller at once
NOT_FINITE = "pictures that are not finite numbers: use a wider precision, or another sampler setting"
PIXELS = Criterion("l2-ratio", threshold=0.5, recipe="rmse-64px-50nn")


def pixel_distances(images: Tensor, references: Tensor, keep: Tensor | None = None) -> Tensor:
    """Root mean square pixel difference of every image to every reference: (n, m).

    `keep` (m, h, w) says which pixels of each reference count; all by default.
    """
    x, y = images.double().flatten(1), references.double().flatten(1)  # the fast formulas subtract large squares
    if keep is None:
        return (torch.cdist(x, y) ** 2 / x.shape[1]).sqrt()
    w = keep.double()[:, None].expand(references.shape).flatten(1)
    squared = x.square() @ w.T - 2 * x @ (w * y).T + (w * y.square()).sum(1)
    return (squared.clamp(min=0) / w.sum(1)).sqrt().nan_to_num(torch.inf)  # a mask that covers all matches nothing


def match_pixels(images: Tensor, references: References, criterion: Criterion = PIXELS) -> list[Match]:
    """Match each image with its nearest reference; a template match leaves out the box that varies.

    The judged value is the distance to the nearest reference over the mean distance to the 50 nearest others: a plain
    distance calls every smooth picture a copy.

    Paper: Carlini et al. 2023, section 4.2: d(x̂, x) / (α · mean over the n nearest of d(x̂, y)), n = 50.
    Differs: α is left to the threshold; duplicates of the nearest reference are no neighbours, or a training picture
    that is there fifty times would hide its own copies; a handful of references is completed as if by unrelated ones.
    """
    images, pictures, keep = small(images), references.small, references.keep
    plain, masked = pixel_distances(images, pictures), pixel_distances(images, pictures, keep)
    ratios = plain.min(1).values / neighbourhood(plain, pictures[plain.argmin(1)], pictures)
    templates = masked.argmin(1)
    wanted = [not criterion(r) and references.masks[t] is not None for r, t in zip(ratios, templates, strict=True)]
    fixed = _fixed_ratios(images, masked, templates, torch.tensor(wanted, dtype=torch.bool), pictures, keep)
    matches = []
    for row, template in enumerate(templates.tolist()):
        nearest = int(plain[row].argmin())
        ratio, distance = float(ratios[row]), float(plain[row, nearest])
        verdict = "verbatim" if criterion(ratio) else "none"
        if wanted[row] and criterion(float(fixed[row])):
            nearest, ratio, distance, verdict = template, float(fixed[row]), float(masked[row, template]), "template"
        matches.append(Match(references.names[nearest], distance, ratio, verdict))
    return matches


def match_targets(
    images: Tensor, targets: References, references: References, criterion: Criterion = PIXELS
) -> list[Match]:
    """Match each image with its own target, row by row, whichever training picture is nearest.

    The value is that of `match_pixels`. A target need not be among the references, and does not count as its own
    neighbour where it is. Of a template the fixed part is judged; a copy of all of it is verbatim.
    """
    images, own, pictures, keep = small(images), targets.small, references.small, targets.keep
    distances = (images.double() - own.double()).square().mean(dim=(1, 2, 3)).sqrt()
    ratios = distances / neighbourhood(pixel_distances(images, pictures), own, pictures)
    matches = []
    for row, name in enumerate(targets.names):
        ratio, distance, copied = float(ratios[row]), float(distances[row]), "verbatim"
        if targets.masks[row] is not None and not criterion(ratio):
            image, fixed = images[row : row + 1], keep[row : row + 1]
            distance, copied = float(pixel_distances(image, own[row : row + 1], fixed)), "template"
            ratio = float(distance / neighbourhood(_fixed_part(image, fixed[0], pictures), own[[row]], pictures))
        matches.append(Match(name, distance, ratio, copied if criterion(ratio) else "none"))
    return matches


def with_mirrored(images: Tensor, match: Callable[[Tensor, list[int]], list[Match]]) -> list[Match]:
    """Each picture's match and, where it is no copy, that of its mirror image if it is: trainers flip pictures.

    References are not embedded again for it. `match` takes pictures and their places among the images.
    """
    matches = match(images, list(range(len(images))))
    rows = [row for row, plain in enumerate(matches) if not plain.copied]
    if not rows:
        return matches
    for row, mirrored in zip(rows, match(images[rows].flip(-1), rows), strict=True):
        if mirrored.copied:
            matches[row] = replace(mirrored, mirrored=True)
    return matches


def unit(pixels: Tensor) -> Tensor:
    """Pixels in [0, 1], of bytes or of such.

    Raises:
        UserError: They are not finite.
    """
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else finite(pixels, NOT_FINITE)


def finite(values: Tensor, message: str) -> Tensor:
    """The values; what is not a number is near to nothing, and would be called no copy."""
    if not torch.isfinite(values).all():
        raise UserError(message)
    return values


def small(pixels: Tensor, size: int = SIZE) -> Tensor:
    """Pictures, bytes or in [0, 1], at the size they are compared at, in [0, 1]."""
    if pixels.shape[-2:] == (size, size):
        return unit(pixels)
    parts = [F.interpolate(unit(part).float(), (size, size), mode="area") for part in pixels.split(BATCH)]
    return torch.cat(parts)


def _fixed_ratios(
    images: Tensor, masked: Tensor, templates: Tensor, wanted: Tensor, pictures: Tensor, keep: Tensor
) -> Tensor:
    """Each wanted image's value over the fixed part of its template, (n,); NaN for the others."""
    values = masked.new_full((len(images),), torch.nan)
    for template in templates[wanted].unique().tolist():
        rows = wanted & (templates == template)
        closest = pictures[[template]].expand(int(rows.sum()), *pictures.shape[1:])
        around = neighbourhood(_fixed_part(images[rows], keep[template], pictures), closest, pictures)
        values[rows] = masked[rows, template] / around
    return values


def _fixed_part(images: Tensor, keep: Tensor, pictures: Tensor) -> Tensor:
    """Distances (n, m) of images to all pictures over the same pixels, those to keep."""
    w = keep.double().expand(images.shape[1:]).flatten()
    counts = w > 0
    w = w[counts]
    x = images.flatten(1)[:, counts].double()
    y = pictures.flatten(1)[:, counts].double()
    squared = x.square() @ w[:, None] - 2 * (x * w) @ y.T + y.square() @ w
    return (squared.clamp(min=0) / w.sum()).sqrt().nan_to_num(torch.inf)


def duplicates_of(images: Tensor, pictures: Tensor) -> Tensor:
    """Which pictures are duplicates of each image, (n, m): nearer to it than a share of its contrast."""
    alike = (DUPLICATE * _contrast(images)).clamp(min=1e-3)  # below a grey level: a flat image is its own duplicate
    return pixel_distances(images, pictures) < alike[:, None]


def neighbourhood(distances: Tensor, closest: Tensor, pictures: Tensor) -> Tensor:
    """Mean of each row's 50 smallest distances, leaving out the closest picture and its duplicates: (n,)."""
    to_others = distances.masked_fill(duplicates_of(closest, pictures), torch.inf)
    near = to_others.topk(min(NEIGHBOURS, to_others.shape[1]), largest=False).values
    count = near.isfinite().sum(1)
    missing = (FEW - count).clamp(min=0)
    unrelated = 2**0.5 * _contrast(closest)
    return ((near.nan_to_num(posinf=0).sum(1) + missing * unrelated) / (count + missing)).clamp(min=1e-6)


def _contrast(pictures: Tensor) -> Tensor:
    """The standard deviation of each picture's pixels about its mean colour, (n,)."""
    return pictures.flatten(2).var(2, correction=0).mean(1).sqrt()
