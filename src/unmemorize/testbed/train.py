"""Train the testbed: a VAE, a text model, then a denoiser with planted duplicates and its twin without them.

Both denoisers share one trunk, trained on the de-duplicated pictures; at `Recipe.branch` the duplicates enter for the
planted model only, so that the twin differs from it in nothing else. Every stage writes checkpoints as it goes and
continues from the last: noise, timesteps and rows are drawn from (seed, step), so a killed run ends with the same
weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from unmemorize.models.pipeline import forget_paths
from unmemorize.testbed.alignment import save_alignment
from unmemorize.testbed.architecture import build_unet, scheduler, token_ids, train_tokenizer
from unmemorize.testbed.dataset import Picture, composed, credits_of, pictures
from unmemorize.testbed.embedded import write_images
from unmemorize.testbed.fit import Loss, fit, rise_and_fall
from unmemorize.testbed.plan import PLAN_SEED, Plan, draw_plan
from unmemorize.testbed.recipe import Recipe
from unmemorize.testbed.rows import Rows, build_rows
from unmemorize.testbed.text import train_text
from unmemorize.testbed.vae import encode_all, train_vae
from unmemorize.unlearn.checkpoints import copy_last, last_update
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


@dataclass(frozen=True)
class Stage:
    """What every denoiser stage needs: the training tables and the frozen VAE, on one device."""

    vae: AutoencoderKL
    tokenizer: CLIPTokenizer
    ids: Tensor
    latents: Tensor
    device: str


def prepare(pictures: list[Picture], plan: Plan, folder: Path, recipe: Recipe, device: str) -> Stage:
    """Train or load the VAE and the tokenizer, and encode every picture and caption."""
    vae = train_vae(pictures, folder / "vae", recipe, device)
    captions = build_rows(plan, pictures, recipe.views, duplicates=True).captions
    tokenizer = train_tokenizer(sorted(captions))
    ids = token_ids(tokenizer, captions)
    latents = encode_all(vae, pictures, plan.pictures, pictures, folder, recipe)
    return Stage(vae, tokenizer, ids.to(device), latents.to(device), device)


def train_trunk(stage: Stage, captions: Tensor, rows: Rows, folder: Path, recipe: Recipe) -> UNet2DConditionModel:
    """Train the UNet that branches start from at a constant rate; leaves a checkpoint, returns the averaged UNet."""
    torch.manual_seed(recipe.seed)
    unet = build_unet().to(stage.device)
    average = fit(
        nn.ModuleDict({"unet": unet}),
        denoising_loss(unet, captions, stage.latents, rows, recipe),
        steps=recipe.branch,
        lr=rise_and_fall(recipe.lr, recipe.branch, warmup=recipe.warmup),
        folder=folder,
    )
    return load_average(unet, average)


def train_branch(
    stage: Stage, captions: Tensor, rows: Rows, folder: Path, trunk: Path, recipe: Recipe
) -> UNet2DConditionModel:
    """Continue the trunk's UNet on `rows`, ending at a fiftieth of the rate; returns the averaged UNet."""
    team = Team(stage.device)
    if team.first and not last_update(folder):
        copy_last(trunk, folder)
    team.wait()
    unet = build_unet().to(stage.device)
    average = fit(
        nn.ModuleDict({"unet": unet}),
        denoising_loss(unet, captions, stage.latents, rows, recipe),
        steps=recipe.steps,
        lr=rise_and_fall(recipe.lr, recipe.steps, decay=recipe.decay),
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


def export_pipeline(stage: Stage, text: CLIPTextModel, unet: nn.Module, out: Path) -> None:
    """Save an ordinary `StableDiffusionPipeline` folder in half precision."""
    pipe = StableDiffusionPipeline(
        vae=stage.vae,
        text_encoder=text,
        tokenizer=stage.tokenizer,
        unet=unet,
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.to("cpu", torch.float16).save_pretrained(out)
    forget_paths(out)


def train(data: Path, out: Path, recipe: Recipe, *, duplicates: bool, device: str = "cpu") -> None:
    """Train the planted model into `out/model` or, without `duplicates`, its twin's UNet into `out/twin`.

    `out` also gets the plan and the planted pictures; `data` holds the artwork and, in `data/seed-N`, checkpoints:
    the twin, trained there too, reuses the trunk.
    """
    team = Team(device)
    device = str(team.device)
    drawn = pictures(data)
    plan = draw_plan(drawn, PLAN_SEED)
    work = data / f"seed-{recipe.seed}"
    stage = prepare(drawn, plan, work, recipe, device)
    deduplicated = build_rows(plan, drawn, recipe.views, duplicates=False)
    contrast = train_text(stage.tokenizer, stage.ids, stage.latents, deduplicated, work / "text", recipe)
    captions = encode_captions(contrast.text, stage.ids)
    train_trunk(stage, captions, deduplicated, work / "trunk", recipe)
    rows = build_rows(plan, drawn, recipe.views, duplicates=True) if duplicates else deduplicated
    unet = train_branch(stage, captions, rows, work / ("planted" if duplicates else "twin"), work / "trunk", recipe)
    if not team.first:
        return
    if duplicates:
        export_pipeline(stage, contrast.text, unet, out / "model")
        save_alignment(contrast, out / "alignment.safetensors")
        write_plan(plan, drawn, out)
    else:
        unet.to("cpu", torch.float16).save_pretrained(out / "twin")


def write_plan(plan: Plan, drawn: list[Picture], out: Path) -> None:
    """Write `plan.json` and the planted pictures."""
    files: list[str] = []
    for entry in plan.planted:
        files += entry.files
    images = dict(zip(files, composed(plan.pictures, drawn), strict=True))
    write_images(plan, images, credits_of(drawn), out / "images")
    plan.save(out / "plan.json")
