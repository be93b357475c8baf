"""The tiled distance: against a literal computation, on planted copies, and its own error rate."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from unmemorize.metrics.similarity import References, with_mirrored
from unmemorize.metrics.tiled import TILED, match_tiled, match_tiled_targets, tiled_distances, with_error


def drawings(count, size=256, seed=0):
    """Pictures with a layout: some coloured discs and bars on a coloured background."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size] / size
    made = np.empty((count, 3, size, size), np.float32)
    for picture in made:
        picture[:] = rng.random(3)[:, None, None]
        for _ in range(rng.integers(6, 12)):
            cx, cy, r = rng.random(3) * [1, 1, 0.25]
            shape = (np.hypot(x - cx, y - cy) < r) if rng.random() < 0.5 else (abs(x - cx) < r) & (abs(y - cy) < r / 2)
            picture[:, shape] = rng.random(3)[:, None]
    return torch.from_numpy(made)


def named(pixels):
    return References(tuple(map(str, range(len(pixels)))), pixels, (None,) * len(pixels), (None,) * len(pixels))


@pytest.fixture(scope="module")
def references():
    return named(drawings(70))


def change(kind, images, seed=5):
    """What a model that copies may do to a picture of 256 px."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    size = images.shape[-1]
    return {
        "as it is": lambda: images,
        "noise": lambda: (images + 0.1 * noise).clamp(0, 1),
        "brighter": lambda: (images + 0.08).clamp(0, 1),
        "cropped by a fiftieth": lambda: F.interpolate(images[..., 5:-5, 5:-5], (size, size), mode="bilinear"),
        "mirrored": lambda: images.flip(-1),
    }[kind]()


def literal(image, others, size):
    """The worst tile's distance to each, by loops over tiles and pixels' squares."""

    def reduced(picture):
        step = picture.shape[-1] // size
        return picture.reshape(3, size, step, size, step).mean((2, 4))

    a, side = reduced(image), size // 4
    found = []
    for other in others:
        b = reduced(other)
        tiles = [(slice(i, i + side), slice(j, j + side)) for i in range(0, size, side) for j in range(0, size, side)]
        found.append(max(np.sqrt(((a[:, r, c] - b[:, r, c]) ** 2).mean()) for r, c in tiles))
    return np.array(found)


def literal_value(image, others):
    """The ratio of the nearest to the mean of the fifty next, at the better of the two sizes; no duplicates here."""
    ratios = []
    for size in (64, 128):
        distances = np.sort(literal(image, others, size))
        ratios.append(distances[0] / distances[1:51].mean())
    return min(ratios)


def test_distances_and_values_are_those_of_a_literal_computation(references):
    """Worst tiles, both sizes, nearest picture and neighbourhood: of copies, and of pictures that are none."""
    images = torch.cat([change("noise", references.pixels[[3]]), drawings(2, seed=9)])
    others = references.pixels.double().numpy()
    found = tiled_distances(*(F.avg_pool2d(x, 4) for x in (images, references.pixels)))
    for row, image in enumerate(images.double().numpy()):
        assert np.allclose(found[row], literal(image, others, 64), atol=1e-6)
    expected = [literal_value(image, others) for image in images.double().numpy()]
    matches = match_tiled(images, references)
    assert [match.value for match in matches] == pytest.approx(expected, rel=1e-4)
    assert [match.verdict for match in matches] == ["verbatim", "none", "none"]
    own = match_tiled_targets(images[:1], references[[3]], references)
    assert own[0].value == pytest.approx(matches[0].value, rel=1e-6)
    assert (own[0].nearest, own[0].verdict) == ("3", "verbatim")


@pytest.mark.parametrize("kind", ["as it is", "noise", "brighter", "cropped by a fiftieth", "mirrored"])
def test_planted_copies_are_found(kind, references):
    """Of twenty copies all, each of its own picture, and mirrored ones are said to be."""
    images = change(kind, references.pixels[:20])
    matches = with_mirrored(images, lambda some, _: match_tiled(some, references))
    assert [match.nearest for match in matches] == [str(i) for i in range(20)]
    assert {match.verdict for match in matches} == {"verbatim"}
    assert {match.mirrored for match in matches} == {kind == "mirrored"}


def test_pictures_that_are_no_copies_are_none(references):
    """Forty others of the same kind, and mirrored ones of them; another target's copy is none of this one."""
    others = drawings(40, seed=1)
    matches = with_mirrored(others, lambda some, _: match_tiled(some, references))
    assert {match.verdict for match in matches} == {"none"}
    assert not any(match.mirrored for match in matches)
    (swapped,) = match_tiled_targets(references.pixels[[4]], references[[5]], references)
    assert swapped.verdict == "none"


def test_a_shared_background_is_no_copy(references):
    """Pictures that agree but for one tile are near by the mean over pixels, and not by the worst tile."""
    image = references.pixels[[0]].clone()
    image[..., 64:128, 128:192] = 1 - image[..., 64:128, 128:192].round()
    assert (image - references.pixels[[0]]).square().mean().sqrt() < 0.25
    assert match_tiled(image, references)[0].value > 2 * (image - references.pixels[[0]]).square().mean().sqrt()
    assert match_tiled(image, references)[0].verdict == "none"


def test_the_error_rate_is_that_of_pictures_against_the_others(references):
    """No drawing is a copy of another; pictures there twice, brighter or mirrored, are duplicates and no errors."""
    measured = with_error(TILED, references)
    assert (measured.error, measured.measured_on) == (0, 70)
    assert 0 < measured.error_high < 0.06
    twice = torch.cat([references.pixels, references.pixels[:30] * 0.99, references.pixels[30:40].flip(-1)])
    assert with_error(TILED, named(twice)).error == 0
    lenient = replace(TILED, threshold=0.9)
    values = [
        literal_value(image, np.delete(references.pixels.double().numpy(), i, 0))
        for i, image in enumerate(references.pixels.double().numpy()[:12])
    ]
    some = with_error(replace(TILED, threshold=sorted(values)[5]), references)
    assert some.error >= 6 / 70
    assert with_error(lenient, references).error > 0.5


def test_without_another_picture_there_is_no_error_rate(references):
    """One picture, or one that is there three times, has nothing to be compared with."""
    for pixels in (references.pixels[:1], references.pixels[[0, 0, 0]]):
        assert with_error(TILED, named(pixels)) == TILED
    assert TILED.said_of_errors == ""
