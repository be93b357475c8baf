"""Which pictures are one picture: exact copies, near-duplicates, and variants of one template."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

ALIKE = 0.5  # of the contrast, or of the distance 1 - cosine of unrelated pictures
GREY = 1 / 255  # the least contrast: a flat picture is its own duplicate
ROWS = 256  # pictures that are compared with all others at once


def duplicate_groups(pictures: Tensor, keep: Tensor, cosines: Tensor | None = None) -> NDArray[np.int64]:
    """A group number per picture, (n,): the same for pictures that a chain of near-duplicates connects.

    Two pictures are near-duplicates if their root mean square difference is less than half of the lower contrast
    (standard deviation of the pixels) of the two, over all pixels or over those that one of them keeps; also if their
    cosine exceeds one half. A group too many makes a test's p-value too small, a group too few costs it power only:
    the limits are wider than those for telling a copy.

    Args:
        pictures: Pictures (n, 3, h, w) in [0, 1].
        keep: Which pixels of each count, (n, h, w): of a template all but the box that varies.
        cosines: Of each picture's embedding with each, (n, n), where there is a copy-detection network.
    """
    pixels, counts = pictures.flatten(2).float(), (keep >= 1).flatten(1)
    pairs = [_near(pixels, torch.arange(len(pixels)))]
    for part in counts.unique(dim=0):
        if part.any() and not part.all():
            pairs.append(_near(pixels[:, :, part], (counts == part).all(1).nonzero()[:, 0]))
    if cosines is not None:
        pairs.append((1 - cosines < ALIKE).nonzero())
    one, other = torch.cat(pairs).T.numpy()
    links = coo_array((np.ones(len(one)), (one, other)), shape=(len(pictures),) * 2)
    return np.asarray(connected_components(links, directed=False)[1], np.int64)


def _near(pixels: Tensor, rows: Tensor) -> Tensor:
    """Pairs (p, 2) of one of `rows` and any picture that differ by less than half of the lower contrast."""
    contrast = pixels.var(2, correction=0).mean(1).sqrt().clamp(min=GREY)
    flat = pixels.flatten(1)
    pairs = []
    for part in rows.split(ROWS):
        difference = torch.cdist(flat[part], flat) / flat.shape[1] ** 0.5
        near = (difference < ALIKE * torch.minimum(contrast[part, None], contrast)).nonzero()
        pairs.append(torch.stack([part[near[:, 0]], near[:, 1]], dim=1))
    return torch.cat(pairs)
