"""What a pipeline is, as a hash: edits and caches are made for one model and say for which."""

from __future__ import annotations

import itertools
import json
from typing import Any

import torch

from unmemorize.core.run import digest


def pipeline_fingerprint(pipe: Any) -> str:
    """A hash of the weights of denoiser, text encoder and VAE, and of the noise schedule, of a diffusers pipeline."""
    modules = {"denoiser": pipe.unet, "text_encoder": pipe.text_encoder, "vae": pipe.vae}
    tensors = ((f"{k}.{name}", p) for k, m in modules.items() for name, p in sorted(m.state_dict().items()))
    # diffusers' own notes in a config start with an underscore: its version, and a list in an order of chance.
    settings = {k: v for k, v in pipe.scheduler.config.items() if not k.startswith("_")}
    schedule = json.dumps([type(pipe.scheduler).__name__, settings], sort_keys=True, default=str).encode()
    weights = (part for name, p in tensors for part in (name.encode(), _bytes(p)))
    return digest(itertools.chain([schedule], weights))


def _bytes(tensor: torch.Tensor) -> bytes:
    data: bytes = tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes()
    return data
