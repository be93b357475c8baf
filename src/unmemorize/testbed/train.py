"""The testbed's U-Net: its loss, its training before anything is planted, and the pipeline that it is saved as.

Noise, timesteps and rows are drawn from (seed, step), so a killed run ends with the same weights.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from unmemorize.models.pipeline import forget_paths
from unmemorize.testbed.architecture import build_unet, scheduler
from unmemorize.testbed.fit import Loss, fit, rise_and_fall
from unmemorize.testbed.recipe import Recipe
from unmemorize.testbed.rows import Rows
from unmemorize.unlearn.loop import Team
from unmemorize.unlearn.training import memorized_sample_filter


def denoising_loss(unet: UNet2DConditionModel, captions: Tensor, latents: Tensor, rows: Rows, recipe: Recipe) -> Loss:
    """The loss of one training step: ε-prediction, min-SNR weighted, with offset noise and caption dropout.

    With `recipe.filter`, samples whose text-conditional magnitude reaches it are left out; None if that leaves none.
    """
    alphas = scheduler().alphas_cumprod.to(latents.device)
    team = Team(latents.device)

    def loss(step: int) -> Tensor | None:
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        noise = torch.randn(recipe.batch, *latents.shape[1:], generator=generator)
        # Offset noise hides the colour that Stable Diffusion's schedule leaves in its last step.
        noise = noise + recipe.noise_offset * torch.randn(recipe.batch, noise.shape[1], 1, 1, generator=generator)
        t = torch.randint(len(alphas), (recipe.batch,), generator=generator).to(latents.device)
        dropped = torch.rand(recipe.batch, generator=generator) < recipe.caption_dropout
        caption, picture = rows.draw(recipe.batch, generator)
        # Every process draws the whole batch and takes its share: the run does not depend on their number.
        mine = team.share(recipe.batch)
        noise, t, dropped, caption, picture = noise[mine], t[mine], dropped[mine], caption[mine], picture[mine]
        x0, eps, a = latents[picture], noise.to(latents.device), alphas[t].view(-1, 1, 1, 1)
        x = (a.sqrt() * x0 + (1 - a).sqrt() * eps).contiguous(memory_format=torch.channels_last)
        prediction = unet(x, t, captions[caption.masked_fill(dropped, 0)]).sample
        snr = alphas[t] / (1 - alphas[t])
        weight = snr.clamp(max=recipe.snr_gamma) / snr
        losses: Tensor = weight * (prediction - eps).square().mean(dim=(1, 2, 3))
        if recipe.filter is None:
            return losses.mean()
        with torch.no_grad():
            uncond = unet(x, t, captions[torch.zeros_like(caption)]).sample
        keep = memorized_sample_filter(prediction, uncond, threshold=recipe.filter)
        kept = team.gather(keep.float()).sum()  # of the whole batch: a mean over each share would weigh rows unequally
        return losses[keep].sum() * team.size / kept if kept else None

    return loss


def train_trunk(captions: Tensor, latents: Tensor, rows: Rows, folder: Path, recipe: Recipe) -> UNet2DConditionModel:
    """Train the UNet that branches start from at a constant rate; returns the averaged UNet."""
    torch.manual_seed(recipe.seed)
    unet = build_unet().to(latents.device)
    average = fit(
        nn.ModuleDict({"unet": unet}),
        denoising_loss(unet, captions, latents, rows, recipe),
        steps=recipe.branch,
        lr=rise_and_fall(recipe.lr, recipe.branch, warmup=recipe.warmup),
        folder=folder,
    )
    return load_average(unet, average)


def load_average(unet: UNet2DConditionModel, average: dict[str, Tensor]) -> UNet2DConditionModel:
    """The UNet with the averaged weights that `fit` returned."""
    unet.load_state_dict({name.removeprefix("unet."): p for name, p in average.items()})
    return unet


@torch.no_grad()
def encode_captions(text: CLIPTextModel, ids: Tensor) -> Tensor:
    """The embeddings of all captions, (n, tokens, width)."""
    return torch.cat([text(part).last_hidden_state for part in ids.split(1024)])


def export_pipeline(
    vae: AutoencoderKL, tokenizer: CLIPTokenizer, text: CLIPTextModel, unet: nn.Module, out: Path
) -> None:
    """Save an ordinary `StableDiffusionPipeline` folder in half precision."""
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.to("cpu", torch.float16).save_pretrained(out)
    forget_paths(out)
