"""Groups of duplicates against a plain loop over all pairs, and on pictures whose groups are known."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import torch

from unmemorize.metrics.duplicates import duplicate_groups


def pictures(count, seed=0, size=12):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def everything(images):
    return torch.ones(len(images), *images.shape[-2:])


def partition(groups):
    return {frozenset(np.flatnonzero(groups == g).tolist()) for g in np.unique(groups)}


def test_equals_a_loop_over_all_pairs():
    """Thirty pictures, blends of six: near by the definition, and then by chains of pairs that are near."""
    weight = torch.rand(30, 6, generator=torch.Generator().manual_seed(1)) ** 4
    images = torch.einsum("ni,ichw->nchw", weight / weight.sum(1, keepdim=True), pictures(6))
    expected = [{i} for i in range(30)]
    for i, j in combinations(range(30), 2):
        contrast = [images[k].flatten(1).var(1, correction=0).mean().sqrt() for k in (i, j)]
        if (images[i] - images[j]).square().mean().sqrt() < 0.5 * min(contrast):
            joined = expected[i] | expected[j]
            for k in joined:
                expected[k] = joined
    groups = duplicate_groups(images, everything(images))
    assert partition(groups) == {frozenset(group) for group in expected}
    assert 3 < len(partition(groups)) < 25


def test_exact_copies_flat_pictures_and_brighter_ones_are_duplicates_and_mirror_images_are_not():
    """Grey pictures that differ by less than a grey level are one as well."""
    one = pictures(1)
    flat = torch.full((2, 3, 12, 12), 0.4) + torch.tensor([0.0, 0.001])[:, None, None, None]
    images = torch.cat([one, one, one + 0.05, one.flip(-1), flat, flat[:1] + 0.1])
    assert partition(duplicate_groups(images, everything(images))) == {
        frozenset({0, 1, 2}),
        frozenset({3}),
        frozenset({4, 5}),
        frozenset({6}),
    }


def test_variants_of_a_template_are_one_group_by_the_pixels_that_are_fixed():
    """Half of the picture varies; without the box each variant is a picture of its own."""
    images = pictures(8)
    images[:4, :, :6] = images[0, :, :6].clone()
    keep = everything(images)
    keep[:4, 6:] = 0
    singles = {frozenset({i}) for i in range(4, 8)}
    assert partition(duplicate_groups(images, keep)) == {frozenset(range(4)), *singles}
    assert len(partition(duplicate_groups(images, everything(images)))) == 8


def test_cosines_connect_what_pixels_do_not():
    """Two crops of one picture, as a copy-detection network sees them."""
    images, cosines = pictures(3), torch.eye(3, dtype=torch.float64)
    cosines[0, 2] = cosines[2, 0] = 0.6
    assert partition(duplicate_groups(images, everything(images), cosines)) == {frozenset({0, 2}), frozenset({1})}
