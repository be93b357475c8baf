"""Pictures on disk as tensors."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unmemorize.core.errors import UserError
from unmemorize.core.pictures import Unusable, read_picture
from unmemorize.core.run import atomic
from unmemorize.metrics.similarity import NOT_FINITE


def load_image(path: Path) -> Tensor:
    """An RGB picture as (3, h, w) in [0, 1].

    Raises:
        UserError: It cannot be read.
    """
    return to_tensor(read_image(path))


def read_image(path: Path) -> Image.Image:
    """The upright RGB picture in a file.

    Raises:
        UserError: It cannot be read.
    """
    try:
        return read_picture(path)
    except Unusable as error:
        raise UserError(f"{path}: {error}: repair or remove it") from error


def to_tensor(image: Image.Image) -> Tensor:
    """A PIL image as RGB, (3, h, w) in [0, 1]."""
    return pixels_of(image).float() / 255


def pixels_of(image: Image.Image) -> Tensor:
    """A PIL image as RGB bytes, (3, h, w) in uint8."""
    return torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1)


def png(image: Tensor) -> bytes:
    """An image (3, h, w) in [0, 1] as a PNG file.

    Raises:
        UserError: It is not finite: it would be a black picture, which is no copy of anything.
    """
    if not torch.isfinite(image).all():
        raise UserError(NOT_FINITE)
    pixels = (image.float() * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="png")
    return file.getvalue()


def save_image(image: Tensor, path: Path) -> None:
    """Write an image (3, h, w) in [0, 1] as PNG."""
    with atomic(path) as temporary:
        temporary.write_bytes(png(image))
