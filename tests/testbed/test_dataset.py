"""Drawings are placed as their composition says."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image, ImageDraw

from unmemorize.testbed.dataset import SIZE, Composition, compose


@pytest.fixture
def square():
    """A red square left of the middle, on nothing."""
    image = Image.new("RGBA", (SIZE, SIZE), (0, 0, 0, 0))
    ImageDraw.Draw(image).rectangle((8, 24, 23, 39), fill=(255, 0, 0, 255))
    return image


WHITE = (255, 255, 255)


def red_box(image):
    """The box of the red pixels: left, top, right, bottom."""
    pixels = np.asarray(image).astype(int)
    rows, columns = np.nonzero((pixels[..., 0] > 200) & (pixels[..., 1] < 50))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def test_a_drawing_is_placed_on_its_background_unchanged(square):
    """Without motion every pixel is the drawing's or the background's, and the size is kept."""
    image = compose(square, Composition("x", (200, 220, 240)))
    assert (image.size, image.mode) == (square.size, "RGB")
    assert image.getpixel((0, 0)) == (200, 220, 240)
    assert red_box(image) == (8, 24, 24, 40)


@pytest.mark.parametrize(
    ("how", "box"),
    [
        ({"shift": (5.0, -3.0)}, (13, 21, 29, 37)),
        ({"flip": True}, (40, 24, 56, 40)),
        ({"scale": 0.5}, (20, 28, 28, 36)),
        ({"angle": 90.0}, (24, 8, 40, 24)),
        ({"angle": 90.0, "flip": True, "shift": (4.0, 0.0)}, (28, 40, 44, 56)),
    ],
)
def test_a_drawing_is_moved_as_the_composition_says(square, how, box):
    """Right and down are positive, flips mirror left and right, scales and turns are about the middle."""
    found = red_box(compose(square, Composition("x", WHITE, **how)))
    same_or_turned_back = [box, (box[0], SIZE - box[3], box[2], SIZE - box[1])] if how.get("angle") else [box]
    assert any(np.abs(np.subtract(found, b)).max() <= 1 for b in same_or_turned_back)


def test_a_patch_is_drawn_where_the_mask_says(square):
    """The patch fills its box, up to but not including right and bottom, and touches nothing else."""
    how = Composition("x", WHITE, patch=(10, 20, 36, 46, 1, 2, 3))
    patched, plain = (np.asarray(compose(square, h)) for h in (how, dataclasses.replace(how, patch=None)))
    assert (patched[20:46, 10:36] == (1, 2, 3)).all()
    outside = np.ones((SIZE, SIZE), bool)
    outside[20:46, 10:36] = False
    assert (patched[outside] == plain[outside]).all()


def test_edges_are_drawn_without_dark_fringes(square):
    """A turned red square on white has no pixel darker in red than its own red."""
    image = np.asarray(compose(square, Composition("x", WHITE, angle=30.0, scale=0.9)))
    assert image[..., 0].min() >= 250


def test_random_compositions_stay_light_and_whole():
    """Backgrounds are light, the drawing is not enlarged, and the same generator state gives the same composition."""
    many = [Composition.random("x", np.random.default_rng(s)) for s in range(50)]
    assert all(min(c.background) >= 200 and 0.75 <= c.scale <= 1 and c.patch is None for c in many)
    assert {c.flip for c in many} == {True, False}
    assert Composition.random("x", np.random.default_rng(3)) == many[3]
