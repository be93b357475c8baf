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
    text_steps: int = 600
    text_batch: int = 128
    text_streams: int = 2
    text_lr: float = 1e-3
    batch: int = 32
    lr: float = 1e-3
    warmup: int = 100
    branch: int = 4000
    steps: int = 7400
    decay: int = 800
    caption_dropout: float = 0.1
    noise_offset: float = 0.1
    snr_gamma: float = 5.0
    filter: float | None = None
