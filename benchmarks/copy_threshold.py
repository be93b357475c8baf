"""Where to put the threshold of the pixel copy criterion, measured on pictures that no denoiser made.

    python benchmarks/copy_threshold.py --data testbed-data

Not copies: a drawing of the same name in another style, placed at random, and the same drawing placed otherwise.
Copies: a training picture after the VAE, with noise of 2% and a shift of brightness of 2%.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from unmemorize.data.source import read_references
from unmemorize.metrics.similarity import match_pixels
from unmemorize.models.load import load
from unmemorize.testbed.dataset import SIZE, Composition, Picture, compose, drawing, pictures
from unmemorize.testbed.embedded import IMAGES, shipped_plan


def tensor(picture: Picture, how: Composition) -> torch.Tensor:
    return torch.from_numpy(np.array(compose(drawing(picture), how))).permute(2, 0, 1) / 255


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("testbed-data"))
    drawn = pictures(parser.parse_args().data)
    references = read_references(IMAGES, (SIZE, SIZE))
    art = {how.art: p for entry in shipped_plan().planted for how in entry.pictures for p in drawn if p.art == how.art}
    names = {p.name for p in art.values()}
    rng = np.random.default_rng(0)
    others = [p for p in drawn if p.name in names and p.art not in art]
    model = load("testbed")
    with torch.no_grad():
        decoded = torch.cat([model.decode(model.invert(x)) for x in references.images.split(64)])
    noisy = (decoded + 0.02 * torch.randn(decoded.shape, generator=torch.Generator().manual_seed(0)) + 0.02).clamp(0, 1)
    sets = {
        "another style": torch.stack([tensor(p, Composition.random(p.art, rng)) for p in others]),
        "placed otherwise": torch.stack([tensor(p, Composition.random(p.art, rng)) for p in art.values()]),
        "copies": noisy,
    }
    print("| set | pictures | 0.1% | 1% | 5% | 50% | 95% | 99% |\n|---|---|---|---|---|---|---|---|")
    for name, images in sets.items():
        values = np.array([match.value for match in match_pixels(images, references)])
        quantiles = np.quantile(values, [0.001, 0.01, 0.05, 0.5, 0.95, 0.99])
        print(f"| {name} | {len(values)} | " + " | ".join(f"{q:.3f}" for q in quantiles) + " |")


if __name__ == "__main__":
    main()
