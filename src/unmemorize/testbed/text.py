"""The testbed's text model, trained as CLIP's is: captions against pictures, then frozen.

A frozen text model is what Stable Diffusion has, and starting from one that already tells pictures apart lets a small
denoiser learn what words mean in a fraction of the steps.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from unmemorize.testbed.architecture import build_picture_model, build_text_model
from unmemorize.testbed.fit import fit, one_cycle
from unmemorize.testbed.recipe import Recipe
from unmemorize.testbed.rows import Rows
from unmemorize.unlearn.loop import Team


class Contrast(nn.Module):
    """A text model and a small convolutional picture model that meet in one embedding."""

    def __init__(self, text: CLIPTextModel, width: int = 128) -> None:
        super().__init__()
        self.text = text
        self.picture = build_picture_model(width)
        self.project = nn.Linear(width, width, bias=False)
        self.scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, ids: Tensor, latents: Tensor) -> Tensor:
        """The symmetric contrastive loss of captions (n, tokens) and their latents (n, 4, 16, 16)."""
        caption = F.normalize(self.project(self.text(ids).pooler_output))
        picture = F.normalize(self.picture(latents))
        logits = self.scale.clamp(max=math.log(100)).exp() * caption @ picture.T
        target = torch.arange(len(ids), device=ids.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def train_text(
    tokenizer: CLIPTokenizer, ids: Tensor, latents: Tensor, rows: Rows, folder: Path, recipe: Recipe
) -> Contrast:
    """Train the text model against pictures; returns both, frozen."""
    torch.manual_seed(recipe.seed)
    contrast = Contrast(build_text_model(tokenizer)).to(ids.device)
    streams = range(recipe.text_streams)[Team(ids.device).share(recipe.text_streams)]

    def stream_loss(step: int, stream: int) -> Tensor:
        generator = torch.Generator().manual_seed((recipe.seed * 1_000_003 + step) * recipe.text_streams + stream)
        caption, picture = rows.draw(recipe.text_batch, generator)
        tokens = ids[caption]
        longest = int((tokens != tokenizer.eos_token_id).sum(1).max()) + 1
        value: Tensor = contrast(tokens[:, :longest], latents[picture])
        return value

    def loss(step: int) -> Tensor:
        # Pictures are contrasted within a stream; processes take streams, so their number changes nothing.
        return torch.stack([stream_loss(step, stream) for stream in streams]).mean()

    average = fit(
        nn.ModuleDict({"contrast": contrast}),
        loss,
        steps=recipe.text_steps,
        lr=one_cycle(recipe.text_lr, recipe.text_steps),
        folder=folder,
        ema=0.99,
    )
    contrast.load_state_dict({name.removeprefix("contrast."): p for name, p in average.items()}, strict=False)
    return contrast.requires_grad_(False).eval()
