"""Structural similarity of latents, pair by pair: no value depends on what else is in the batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

K1, K2 = 0.01, 0.03
WINDOW, SIGMA = 11, 1.5


@dataclass(frozen=True)
class Scales:
    """How many scales are compared, with a Gaussian window of how many taps."""

    count: int
    window: int

    @property
    def exponent(self) -> float:
        """The weight of each scale: NeMo's at three scales."""
        return 0.33 if self.count == 3 else 1 / self.count


def scales_for(height: int, width: int) -> Scales:
    """Three scales of an 11-tap window where they fit, else fewer, else one with a smaller window."""
    side = min(height, width)
    count = next((count for count in (3, 2) if side >> (count - 1) >= WINDOW), 1)
    return Scales(count, min(WINDOW, side - (side + 1) % 2))


def scaled(images: Tensor) -> Tensor:
    """Images (n, c, h, w) with each channel of each scaled to [0, 1]."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    return (images - low) / (high - low).clamp(min=1e-12)


def ssim(a: Tensor, b: Tensor, scales: Scales) -> Tensor:
    """Multi-scale structural similarity of images (n, c, h, w) in [0, 1], row by row: (n,) in [0, 1], float32.

    Contrast and structure are compared at every scale, luminance at the coarsest; negative terms count as 0. The σ of
    the window is 1.5, less for a smaller window.

    Paper: Wang, Simoncelli and Bovik 2003, equation 7; three scales with exponents of 0.33 as in NeMo (2024).
    Differs: the data range is 1, never that of the batch, on which a pair's value would come to depend.
    """
    a, b = a.float(), b.float()
    product = torch.ones(len(a), device=a.device)
    for level in range(scales.count):
        if level:
            a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
        similarity, contrast = _compare(a, b, scales.window)
        term = similarity if level == scales.count - 1 else contrast
        product = product * term.flatten(1).mean(1).clamp(min=0) ** scales.exponent
    return product


def pairwise_ssim(images: Tensor, scales: Scales) -> Tensor:
    """Similarity of every image (n, c, h, w) to every other: (n, n), with -1 for an image to itself."""
    first, second = torch.triu_indices(len(images), len(images), 1, device=images.device)
    table = torch.full((len(images), len(images)), -1.0, device=images.device)
    table[first, second] = ssim(images[first], images[second], scales)
    return torch.maximum(table, table.T)


def _compare(a: Tensor, b: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Similarity at every place, and its part without luminance where the window needs no reflection."""
    height, width = a.shape[-2:]
    down, across = _average(height, window).to(a), _average(width, window).to(a)

    def averaged(x: Tensor) -> Tensor:
        return down @ x @ across.T

    mean_a, mean_b = averaged(a), averaged(b)
    variance_a = (averaged(a * a) - mean_a**2).clamp(min=0)
    variance_b = (averaged(b * b) - mean_b**2).clamp(min=0)
    covariance = averaged(a * b) - mean_a * mean_b
    contrast = (2 * covariance + K2**2) / (variance_a + variance_b + K2**2)
    similarity = contrast * (2 * mean_a * mean_b + K1**2) / (mean_a**2 + mean_b**2 + K1**2)
    margin = window // 2
    return similarity, contrast[..., margin : height - margin, margin : width - margin]


def _average(size: int, window: int) -> Tensor:
    """The Gaussian average of `window` neighbours, reflected at the borders, as a matrix (size, size)."""
    offset = torch.arange(window) - window // 2
    taps = torch.exp(-(offset**2) / (2 * (SIGMA * window / WINDOW) ** 2))
    place = (torch.arange(size)[:, None] + offset).abs()
    place = torch.where(place < size, place, 2 * (size - 1) - place)
    return torch.zeros(size, size).scatter_add_(1, place, (taps / taps.sum()).expand(size, window))
