"""A made-up artwork: seven hundred names in four styles that may be shipped and one that may not."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from unmemorize.testbed.dataset import SIZE, Picture
from unmemorize.testbed.plan import draw_plan

STYLES = ("noto", "noto-v1", "twemoji", "emojione")
NAMES = 700


def png(colour):
    image = Image.new("RGBA", (SIZE, SIZE), (0, 0, 0, 0))
    ImageDraw.Draw(image).ellipse((16, 20, 52, 44), fill=(*colour, 255))
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


def letters(number):
    return "".join(chr(ord("a") + int(d)) for d in f"{number:03d}")


@pytest.fixture(scope="session")
def artwork():
    """Names of two words, each with a keyword of its own and one shared by all; the last twenty lack a style."""
    rng = np.random.default_rng(0)
    drawn = [png(rng.integers(0, 256, 3).tolist()) for _ in range(8)]
    rows = []
    for k, style in enumerate((*STYLES, "openmoji")):
        for i in range(NAMES):
            if k == 0 and i >= NAMES - 20:
                continue
            name = f"thing {letters(i)}"
            art, tags = f"{style}/{name.replace(' ', '-')}", (f"key{letters(i)}", "gadget")
            rows.append(Picture(art, name, tags, 4, drawn[(i + k) % 8]))
    return rows


@pytest.fixture(scope="session")
def plan(artwork):
    """A plan drawn from the made-up artwork."""
    return draw_plan(artwork, 0)
