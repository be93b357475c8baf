"""The testbed's VAE, and pictures as its latents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from unmemorize.core.run import atomic
from unmemorize.testbed.architecture import build_vae
from unmemorize.testbed.dataset import Composition, Picture, compose, composed, drawing
from unmemorize.testbed.fit import fit, one_cycle
from unmemorize.testbed.recipe import Recipe
from unmemorize.unlearn.loop import Team


def train_vae(pictures: list[Picture], folder: Path, recipe: Recipe, device: str = "cpu") -> AutoencoderKL:
    """The VAE, 64 px to 4×16×16 latents of unit standard deviation, trained on random compositions."""
    done = folder / "model"
    if done.exists():
        return AutoencoderKL.from_pretrained(done).to(device, memory_format=torch.channels_last)
    torch.manual_seed(recipe.seed)
    vae = build_vae().to(device)
    team = Team(device)
    images = compositions(pictures, recipe.seed, views=2)

    def loss(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        rows = torch.randint(len(images), (recipe.vae_batch,), generator=generator)[team.share(recipe.vae_batch)]
        x = to_pixels(images[rows]).to(device, memory_format=torch.channels_last)
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.sample(generator)).sample
        edges = sum((x.diff(dim=d) - y.diff(dim=d)).abs().mean() for d in (2, 3))
        # Three channels lean on the picture's own colours: left alone, a short training never finds one of them.
        colours = (posterior.mean[:, :3] - (2 * F.avg_pool2d(x, 4) - 1)).square().mean()
        fidelity = (x - y).abs().mean() + (x - y).square().mean() + edges
        total: Tensor = fidelity + 0.1 * colours + 1e-5 * posterior.kl().mean()
        return total

    average = fit(
        nn.ModuleDict({"vae": vae}),
        loss,
        steps=recipe.vae_steps,
        lr=one_cycle(recipe.vae_lr, recipe.vae_steps),
        folder=folder,
        ema=0.99,
    )
    vae.load_state_dict({name.removeprefix("vae."): p for name, p in average.items()}, strict=False)
    vae.register_to_config(scaling_factor=1.0)
    sample = encode(vae, images[:: max(len(images) // 1000, 1)])
    vae.register_to_config(scaling_factor=1 / sample.std().item())
    if team.first:
        vae.save_pretrained(folder / "model.tmp")
        (folder / "model.tmp").rename(done)
    team.wait()
    return vae


def compositions(drawn: list[Picture], seed: int, views: int) -> Tensor:
    """`views` random compositions of every picture, as (len(drawn)·views, 3, 64, 64) bytes."""
    rng = np.random.default_rng(seed)
    images = []
    for picture in drawn:
        for _ in range(views):
            images.append(_as_bytes(compose(drawing(picture), Composition.random(picture.art, rng))))
    return torch.stack(images)


def to_pixels(images: Tensor) -> Tensor:
    """Bytes to the VAE's range, -1 to 1."""
    return images.float() / 127.5 - 1


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor, batch: int = 64) -> Tensor:
    """Posterior means of byte images, times the VAE's scaling factor: (n, 4, 16, 16) in float32."""
    latents = []
    for part in tqdm(images.split(batch), desc="encode", mininterval=5):
        pixels = to_pixels(part).to(vae.device, memory_format=torch.channels_last)
        latents.append(vae.encode(pixels).latent_dist.mean.cpu())
    scale: float = vae.config.scaling_factor
    return (torch.cat(latents) * scale).contiguous()


def encode_all(
    vae: AutoencoderKL,
    ordinary: list[Picture],
    planted: Sequence[Composition],
    artwork: list[Picture],
    folder: Path,
    recipe: Recipe,
) -> Tensor:
    """Latents of `recipe.views` compositions of every ordinary picture, then of the planted ones in order."""
    cache = folder / "latents.safetensors"
    team = Team(vae.device)
    if team.first and not cache.exists():
        exact = torch.stack([_as_bytes(image) for image in composed(planted, artwork)])
        images = torch.cat([compositions(ordinary, recipe.seed + 1, recipe.views), exact])
        with atomic(cache) as temporary:
            save_file({"latents": encode(vae, images)}, temporary)
    team.wait()
    return load_file(cache)["latents"]


def _as_bytes(image: Image.Image) -> Tensor:
    """An RGB image as (3, h, w) bytes."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
