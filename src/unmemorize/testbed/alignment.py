"""How well a picture fits its caption: the testbed's own CLIP, whose text side the models are conditioned on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unmemorize.core.run import atomic
from unmemorize.models.pipeline import PipelineModel
from unmemorize.testbed.architecture import build_picture_model
from unmemorize.testbed.embedded import OF_ANOTHER_SEED, PANEL, RETRAINED


class Alignment(nn.Module):
    """Cosine of pictures and captions in one space: that of the shipped models' text encoder."""

    def __init__(self, model: PipelineModel) -> None:
        super().__init__()
        self.pipe, self.model = model.pipe, model
        width = model.pipe.text_encoder.config.hidden_size
        self.picture, self.project = build_picture_model(width), nn.Linear(width, width, bias=False)
        trained = RETRAINED if model.name.startswith(OF_ANOTHER_SEED) else PANEL  # with the VAE and the text model
        weights = load_file(trained / "alignment.safetensors")
        self.load_state_dict({name: p.float() for name, p in weights.items()})
        self.requires_grad_(False).eval().to(model.device)

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Cosines (n,) in [-1, 1] of images (n, 3, h, w) in [0, 1] with their prompts."""
        return (self.pictures(images) * self.captions(prompts)).sum(dim=1).cpu()

    @torch.no_grad()
    def pictures(self, images: Tensor) -> Tensor:
        """Pictures as unit vectors, (n, width)."""
        return F.normalize(self.picture(self.model.invert(images).float()))

    @torch.no_grad()
    def captions(self, prompts: Sequence[str]) -> Tensor:
        """Captions as unit vectors, (n, width)."""
        ids = self.pipe.tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt").input_ids
        encoder = self.pipe.text_encoder
        text = getattr(encoder, "text_model", encoder)  # a flow model's encoder has the projection, too
        return F.normalize(self.project(text(ids.to(self.model.device)).pooler_output.float()))


def save_alignment(contrast: nn.Module, path: Path) -> None:
    """Write what `Alignment` needs of the trained contrast, in half precision."""
    weights = {}
    for name, value in contrast.state_dict().items():
        if name.startswith(("picture", "project")):
            weights[name] = value.half().contiguous()
    with atomic(path) as temporary:
        save_file(weights, temporary)
