"""How much there is to see in a picture."""

from __future__ import annotations

import io

import torch
from PIL import Image
from torch import Tensor


def png_sizes(images: Tensor) -> Tensor:
    """The bytes that each picture of (n, 3, h, w) in [0, 1] takes as a PNG file, (n,): its complexity.

    Simple pictures are easy to denoise whether or not they were trained on: a score of pictures without a control for
    complexity finds flat drawings.

    Paper: Kamkari et al. 2024 compare intrinsic dimension with it; Rao and Moyer 2026 divide by a compressed size.
    """
    sizes = []
    for pixels in (images.float() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy():
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format="png")
        sizes.append(file.tell())
    return torch.tensor(sizes, dtype=torch.float32)
