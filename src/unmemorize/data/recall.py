"""How many altered copies the search for near-duplicates finds, measured on the audited pictures themselves."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

from PIL import Image, ImageDraw, ImageEnhance

from unmemorize.data.hashes import Looks, Network, looks_of

PICTURES = 64  # that copies are planted of: a share of them has a standard error of at most 0.06


def measure_recall(
    pictures: Sequence[Image.Image], finds: Callable[[Looks, Looks], bool], network: Network | None = None
) -> dict[str, float]:
    """The share of pictures of which an altered copy is found, by alteration; empty without pictures.

    Args:
        pictures: The pictures.
        finds: Whether two pictures of different pixels would be found to be one.
        network: What gives them vectors.
    """
    if not pictures:
        return {}
    originals = [looks_of(picture, network) for picture in pictures]
    recall = {}
    for name, alter in ALTERATIONS.items():
        found = 0
        for picture, original in zip(pictures, originals, strict=True):
            copy = looks_of(alter(picture), network)
            found += original.pixels == copy.pixels or finds(original, copy)
        recall[name] = found / len(pictures)
    return recall


def _jpeg(picture: Image.Image) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=30)
    return Image.open(file).convert("RGB")


def _half_size(picture: Image.Image) -> Image.Image:
    size = max(picture.width // 2, 1), max(picture.height // 2, 1)
    return picture.resize(size, Image.Resampling.LANCZOS)


def _brighter(picture: Image.Image) -> Image.Image:
    return ImageEnhance.Brightness(picture).enhance(1.3)


def _grey(picture: Image.Image) -> Image.Image:
    return picture.convert("L").convert("RGB")


def _cropped(picture: Image.Image) -> Image.Image:
    """Without a fortieth of the width and height at each side."""
    left, top = picture.width // 40, picture.height // 40
    return picture.crop((left, top, picture.width - left, picture.height - top))


def _captioned(picture: Image.Image) -> Image.Image:
    """With a white bar and a line of text over its lowest sixth."""
    captioned = picture.copy()
    top = picture.height - max(picture.height // 6, 1)
    draw = ImageDraw.Draw(captioned)
    draw.rectangle((0, top, picture.width, picture.height), fill="white")
    size = max((picture.height - top) * 0.6, 1)
    draw.text((picture.width / 20, top), "WHEN YOU SEE IT", fill="black", font_size=size)
    return captioned


ALTERATIONS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG at quality 30": _jpeg,
    "half the size": _half_size,
    "brightness × 1.3": _brighter,
    "greyed": _grey,
    "cropped by 5%": _cropped,
    "captioned": _captioned,
}
