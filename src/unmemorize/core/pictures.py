"""The one reader of pictures: regular files, in formats that are decoded without starting another program."""

from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, features

from unmemorize.core.files import kind_of

# Pillow reads a file by its contents, whatever its name. Of its other formats PostScript starts Ghostscript, and
# several are hardly ever read and little tested.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", *(("AVIF",) if features.check("avif") else ()))
ENDINGS = (".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".bmp", ".dib", ".gif", ".tif", ".tiff")
# Pictures that are not read: in a folder they are counted, so that nobody believes they were.
OTHER_ENDINGS = (
    *(".heic", ".heif", ".jxl", ".jp2", ".j2k", ".svg", ".ico", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".psd", ".xcf"),
    *(".eps", ".ps", ".ai", ".wmf", ".emf", ".xpm", ".pcx", ".dds", ".exr", ".hdr", ".raw", ".dng", ".cr2", ".nef"),
)
MAX_PIXELS = 64_000_000
BACKGROUND = "white"  # behind what is transparent, as browsers and trainers have it
# What Pillow raises of files that are damaged, or made to harm.
BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    MemoryError,
    EOFError,
    struct.error,
)

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_NOTES = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Unusable(Exception):
    """A picture that cannot be used, and why."""


def read_picture(source: Path | bytes) -> Image.Image:
    """The picture in a file, or in a file's bytes: upright, RGB, 8 bits a channel, on white where it is transparent.

    Of an animation it is the first frame. Text and colour profiles in the file are not read.

    Raises:
        Unusable: It is missing, empty, truncated, not a regular file, of another format, or has more than `MAX_PIXELS`.
    """
    content = source if isinstance(source, bytes) else _content(source)
    if not content:
        raise Unusable("empty file")
    if content.startswith(_PNG):
        content = _without_notes(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata; too many pixels are refused below
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Unusable("decompression bomb")
                image.load()
                return _upright(_rgb(image), _orientation(image))
    except Image.DecompressionBombError as error:
        raise Unusable("decompression bomb") from error
    except BROKEN as error:
        raise Unusable("picture cannot be read") from error


def _content(path: Path) -> bytes:
    try:
        kind = kind_of(path)
        if kind != "a file":
            raise Unusable("no such file" if kind == "nothing" else f"{kind}, not a file")
        return path.read_bytes()
    except OSError as error:
        raise Unusable("file cannot be read") from error


def _without_notes(content: bytes) -> bytes:
    """A PNG without its text and its colour profile, whose size Pillow limits: a long text is no fault of the picture.

    Where the chunks do not add up, the rest is kept for the decoder to refuse.
    """
    chunks, start = [_PNG], len(_PNG)
    while start + 12 <= len(content):
        end = start + 12 + int.from_bytes(content[start : start + 4], "big")  # length, name and checksum are 12 bytes
        if end > len(content):
            break
        if content[start + 4 : start + 8] not in _PNG_NOTES:
            chunks.append(content[start:end])
        start = end
    chunks.append(content[start:])
    return b"".join(chunks)


def _rgb(image: Image.Image) -> Image.Image:
    """What a viewer shows of a picture of any mode."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        image = Image.fromarray(_eight_bits(np.asarray(image)))
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), image).convert("RGB")


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Grey values of a wide type as bytes: shares where they are in [0, 1], 16 bits where they exceed 255."""
    values = np.nan_to_num(values.astype(np.float64))
    largest = values.max(initial=0)
    if largest > 255:
        values = values // 256
    elif largest <= 1 and not np.array_equal(values, values.round()):
        values = values * 255
    return values.round().clip(0, 255).astype(np.uint8)


def _orientation(image: Image.Image) -> int:
    """How the camera was held, as EXIF says it; 1, upright, where that cannot be read."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except BROKEN:
        return 1
    return orientation if isinstance(orientation, int) else 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    turn = _UPRIGHT.get(orientation)
    return image if turn is None else image.transpose(turn)
