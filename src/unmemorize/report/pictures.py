"""Pictures of a run as data URIs: only ever read from inside the run directory, and always re-encoded."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image

from unmemorize.core.files import is_special, real_path
from unmemorize.core.pictures import Unusable, read_picture

LARGEST = 256  # pixels a side; larger pictures are shrunk
THUMB = 96  # the same for a thumbnail
EXACT = 128  # up to here every pixel is kept, and shown as a square of whole pixels
SHOWN = 128  # CSS pixels a side, at most


@dataclass(frozen=True)
class Picture:
    """A picture to put in the page, and the size it is shown at."""

    uri: str
    width: int
    height: int
    exact: bool


def picture_loader(run: Path, largest: int = LARGEST) -> Callable[[str], Picture | None]:
    """A function from a path in the run to its picture; None for what is missing, damaged or outside the run."""
    root = real_path(run)

    @cache
    def load(relative: str) -> Picture | None:
        try:
            path = real_path(root / relative)
            if not path.is_relative_to(root):
                return None
            return _encode(read_picture(path), largest)
        except (OSError, ValueError, Unusable):
            return None

    return load


def file_hasher(run: Path) -> Callable[[str], str]:
    """A function from a path in the run to the file's SHA-256; empty for what is missing or outside the run."""
    root = real_path(run)

    def hashed(relative: str) -> str:
        try:
            path = real_path(root / relative)
            if is_special(path) or not path.is_relative_to(root):
                return ""
            return hashlib.sha256(path.read_bytes()).hexdigest()
        except (OSError, ValueError):
            return ""

    return hashed


def _encode(image: Image.Image, largest: int) -> Picture:
    exact = max(image.size) <= min(EXACT, largest)
    buffer = io.BytesIO()
    if exact:
        image.save(buffer, "PNG", optimize=True)
    else:
        image.thumbnail((largest, largest), Image.Resampling.LANCZOS)
        image.save(buffer, "WEBP", quality=85, method=4)
    kind = "png" if exact else "webp"
    scale = SHOWN // max(image.size) if exact else SHOWN / max(image.size)
    width, height = [max(1, round(length * scale)) for length in image.size]
    return Picture(f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}", width, height, exact)
