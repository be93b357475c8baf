"""Every number of a training run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """Every number of the training run; the defaults are the shipped models'."""

    seed: int = 0
    vae_steps: int = 1000
    vae_batch: int = 10
    vae_lr: float = 2e-3
    views: int = 4
    batch: int = 32
    lr: float = 8e-4
    warmup: int = 100
    branch: int = 1300
    steps: int = 2450
    decay: int = 350
    caption_dropout: float = 0.1
    noise_offset: float = 0.1
    snr_gamma: float = 5.0
