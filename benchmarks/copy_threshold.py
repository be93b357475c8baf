"""Where to put the threshold of the pixel copy criterion, measured on pictures that no denoiser made.

    python benchmarks/copy_threshold.py [--data testbed-data]

Copies: a training picture after the VAE, with noise of 2% and a shift of brightness of 2%. To see what counts as well:
training pictures averaged to a coarse grid, one grey, white, uniform noise, and the mean of all training pictures. With
`--data`, the artwork that `unmemorize testbed train` fetched, what is no copy: a drawing of the same name in another
style, placed at random, and the same drawing placed otherwise.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from common import REFERENCES
from torch import Tensor

from unmemorize.metrics.similarity import PIXELS, match_pixels
from unmemorize.models.load import load
from unmemorize.testbed.dataset import Composition, Picture, compose, drawing, pictures
from unmemorize.testbed.embedded import shipped_plan


def tensor(picture: Picture, how: Composition) -> Tensor:
    return torch.from_numpy(np.array(compose(drawing(picture), how))).permute(2, 0, 1) / 255


def coarse(images: Tensor, cells: int) -> Tensor:
    """Pictures averaged in cells × cells fields, and drawn at their own size again."""
    small = F.interpolate(images, (cells, cells), mode="area")
    return F.interpolate(small, images.shape[-2:], mode="bilinear")


def no_copies(data: Path) -> dict[str, Tensor]:
    """Drawings of planted names in another style, and planted drawings placed otherwise."""
    drawn = pictures(data)
    planted = {how.art for entry in shipped_plan().planted for how in entry.pictures}
    art = {p.art: p for p in drawn if p.art in planted}
    names = {p.name for p in art.values()}
    rng = np.random.default_rng(0)
    others = [p for p in drawn if p.name in names and p.art not in art]
    return {
        "another style": torch.stack([tensor(p, Composition.random(p.art, rng)) for p in others]),
        "placed otherwise": torch.stack([tensor(p, Composition.random(p.art, rng)) for p in art.values()]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    data = parser.parse_args().data
    images = REFERENCES.images
    model = load("testbed")
    with torch.no_grad():
        decoded = torch.cat([model.decode(model.invert(x)) for x in images.split(64)])
    generator = torch.Generator().manual_seed(0)
    plain = torch.stack([torch.full_like(images[0], 0.5), torch.ones_like(images[0]), images.mean(dim=0)])
    sets = no_copies(data) if data else {}
    sets |= {
        "copies": (decoded + 0.02 * torch.randn(decoded.shape, generator=generator) + 0.02).clamp(0, 1),
        "averaged to 16×16": coarse(images, 16),
        "averaged to 8×8": coarse(images, 8),
        "grey, white, mean of all": plain,
        "noise": torch.rand(32, *images.shape[1:], generator=generator),
    }
    print("| set | pictures | counted as copies | 0.1% | 1% | 5% | 50% | 95% | 99% |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, pictured in sets.items():
        values = np.array([match.value for match in match_pixels(pictured, REFERENCES)])
        quantiles = np.quantile(values, [0.001, 0.01, 0.05, 0.5, 0.95, 0.99])
        share = np.mean(values <= PIXELS.threshold)
        print(f"| {name} | {len(values)} | {share:.3f} | " + " | ".join(f"{q:.3f}" for q in quantiles) + " |")


if __name__ == "__main__":
    main()
