"""For somebody else's training loop: leave out of a step the samples that the model has memorized."""

from __future__ import annotations

import torch
from torch import Tensor


def memorized_sample_filter(cond: Tensor, uncond: Tensor, *, threshold: float = 2.0) -> Tensor:
    """Which samples of a batch to train on, (n,) bool: those whose text-conditional magnitude is under the threshold.

    Both are noise predictions (n, c, h, w) for the same noisy latents. A magnitude grows with the square root of the
    number of latent values: 2 is for Stable Diffusion's 4×64×64.

    Paper: Wen et al. 2024, section 4.2 (threshold 2).
    """
    with torch.no_grad():
        magnitudes: Tensor = (cond.float() - uncond.float()).flatten(1).norm(dim=1)
        return magnitudes < threshold


def mean_of_kept(losses: Tensor, keep: Tensor) -> Tensor | None:
    """The mean of the kept samples' losses (n,), or None if none is kept: then there is nothing to step on.

    Paper: Wen et al. 2024, the public trainer.
    """
    return losses[keep].mean() if keep.any() else None
