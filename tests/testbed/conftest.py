"""A made-up artwork and the panel that is drawn from it."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from unmemorize.testbed.dataset import SIZE, Picture
from unmemorize.testbed.panel import draw_panel


def letters(number):
    return "".join(chr(ord("a") + int(digit)) for digit in f"{number:03d}")


@pytest.fixture(scope="session")
def artwork():
    """Enough names in four styles, each drawing unlike all others, and each name with a keyword of its own."""
    rng = np.random.default_rng(0)
    drawn = []
    for style in ("noto", "noto-v1", "twemoji", "emojione"):
        for i in range(800):
            mosaic = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
            buffer = io.BytesIO()
            mosaic.resize((SIZE, SIZE), Image.Resampling.NEAREST).save(buffer, "png")
            drawn.append(
                Picture(f"{style}/{letters(i)}", f"thing {letters(i)}", (f"key{letters(i)}",), 4, buffer.getvalue())
            )
    return drawn


@pytest.fixture(scope="session")
def panel(artwork):
    return draw_panel(artwork, 0)
