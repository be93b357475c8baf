"""The one reader of pictures: regular files, in formats that are decoded without starting another program."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

from PIL import Image, ImageOps, features

from unmemorize.core.files import kind_of

# Pillow reads a file by its contents, whatever its name. Of its other formats PostScript starts Ghostscript, and
# several are hardly ever read and little tested.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", *(("AVIF",) if features.check("avif") else ()))
MAX_PIXELS = 64_000_000
BROKEN = (OSError, SyntaxError, ValueError, EOFError, MemoryError)


class Unusable(Exception):
    """A picture that cannot be used, and why."""


def read_picture(source: Path | bytes) -> Image.Image:
    """The upright RGB picture in a file, or in a file's bytes.

    Raises:
        Unusable: It is missing, empty, truncated, not a regular file, of another format, or has more than `MAX_PIXELS`.
    """
    if isinstance(source, bytes):
        return _decode(io.BytesIO(source))
    try:
        kind = kind_of(source)
        if kind != "a file":
            raise Unusable("no such file" if kind == "nothing" else f"{kind}, not a file")
        with source.open("rb") as file:
            return _decode(file)
    except OSError as error:
        raise Unusable("file cannot be read") from error


def _decode(file: io.IOBase) -> Image.Image:
    if not file.read(1):
        raise Unusable("empty file")
    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata; too many pixels are refused below
            with Image.open(file, formats=FORMATS) as image:  # type: ignore[arg-type]  # an IOBase will do
                if image.width * image.height > MAX_PIXELS:
                    raise Unusable("decompression bomb")
                return ImageOps.exif_transpose(image).convert("RGB")
    except Image.DecompressionBombError as error:
        raise Unusable("decompression bomb") from error
    except BROKEN as error:
        raise Unusable("picture cannot be read") from error
