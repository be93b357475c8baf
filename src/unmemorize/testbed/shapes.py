"""Plain pictures: forty captions whose pictures hardly vary, though none of them is memorized."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from unmemorize.testbed.dataset import SIZE, Picture

DRAWINGS = 7  # as many as a name of the artwork has styles, so that a plain caption is drawn as often as a name
COLOURS = {
    "red": (214, 39, 40),
    "orange": (255, 140, 26),
    "yellow": (240, 200, 30),
    "green": (44, 140, 60),
    "blue": (40, 90, 200),
    "purple": (130, 60, 170),
    "brown": (130, 80, 40),
    "black": (20, 20, 20),
}


def shapes() -> list[Picture]:
    """Plain coloured shapes: `DRAWINGS` equal drawings of each of forty captions, such as "plain red square"."""
    middle, radius = SIZE / 2, SIZE * 0.4
    outlines = {
        "circle": [],
        "square": _polygon(middle, [radius * 0.9] * 4, turn=math.pi / 4),
        "diamond": _polygon(middle, [radius] * 4),
        "triangle": _polygon(middle, [radius] * 3),
        "star": _polygon(middle, [radius, radius * 0.45] * 5),
    }
    drawn = []
    for shape, outline in outlines.items():
        for colour, rgb in COLOURS.items():
            image = Image.new("RGBA", (SIZE, SIZE), (0, 0, 0, 0))
            pen = ImageDraw.Draw(image)
            if shape == "circle":
                pen.ellipse((middle - radius, middle - radius, middle + radius, middle + radius), fill=(*rgb, 255))
            else:
                pen.polygon(outline, fill=(*rgb, 255))
            buffer = io.BytesIO()
            image.save(buffer, "png")
            for k in range(DRAWINGS):
                art, name = f"plain/{colour}-{shape}-{k}", f"plain {colour} {shape}"
                drawn.append(Picture(art, name, (), 0, buffer.getvalue()))
    return drawn


def _polygon(middle: float, radii: Sequence[float], turn: float = 0.0) -> list[tuple[float, float]]:
    """The corners of a polygon around the middle, the first one on top."""
    corners = []
    for i, radius in enumerate(radii):
        angle = turn + 2 * math.pi * i / len(radii)
        corners.append((middle + radius * math.sin(angle), middle - radius * math.cos(angle)))
    return corners
