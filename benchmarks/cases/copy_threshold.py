"""Where to put the threshold of the pixel copy criterion, measured on pictures that no denoiser made.

Copies: a training picture after the VAE, with noise of 2% and a shift of brightness of 2%. To see what counts as well:
training pictures averaged to a coarse grid, one grey, white, uniform noise, and the mean of all training pictures. With
`--data`, the artwork that `unmemorize testbed train` fetched, what is no copy: a drawing of the same name in another
style, placed at random, and the same drawing placed otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from branches import references, subject_of
from harness import Options, Row, Study, table
from torch import Tensor

from unmemorize.metrics.similarity import PIXELS, match_pixels
from unmemorize.testbed.dataset import Composition, Picture, compose, drawing, pictures
from unmemorize.testbed.embedded import shipped_panel

QUANTILES = {"0.1%": 0.001, "1%": 0.01, "5%": 0.05, "50%": 0.5, "95%": 0.95, "99%": 0.99}


def tensor(picture: Picture, how: Composition) -> Tensor:
    return torch.from_numpy(np.array(compose(drawing(picture), how))).permute(2, 0, 1) / 255


def coarse(images: Tensor, cells: int) -> Tensor:
    """Pictures averaged in cells × cells fields, and drawn at their own size again."""
    small = F.interpolate(images, (cells, cells), mode="area")
    return F.interpolate(small, images.shape[-2:], mode="bilinear")


def no_copies(data: Path) -> dict[str, Tensor]:
    """Drawings of planted names in another style, and planted drawings placed otherwise."""
    drawn = pictures(data)
    planted = {how.art for entry in shipped_panel().entries for how in entry.pictures}
    art = {p.art: p for p in drawn if p.art in planted}
    names = {p.name for p in art.values()}
    rng = np.random.default_rng(0)
    others = [p for p in drawn if p.name in names and p.art not in art]
    return {
        "another style": torch.stack([tensor(p, Composition.random(p.art, rng)) for p in others]),
        "placed otherwise": torch.stack([tensor(p, Composition.random(p.art, rng)) for p in art.values()]),
    }


def measure(options: Options) -> list[Row]:
    """Share counted as copies, and quantiles of the ratio, of every set of pictures."""
    images, model = references().images, subject_of("C").model
    with torch.no_grad():
        decoded = torch.cat([model.decode(model.invert(x)) for x in images.split(64)])
    generator = torch.Generator().manual_seed(0)
    plain = torch.stack([torch.full_like(images[0], 0.5), torch.ones_like(images[0]), images.mean(dim=0)])
    sets = no_copies(Path(options.data)) if options.data else {}
    sets |= {
        "copies": (decoded + 0.02 * torch.randn(decoded.shape, generator=generator) + 0.02).clamp(0, 1),
        "averaged to 16×16": coarse(images, 16),
        "averaged to 8×8": coarse(images, 8),
        "grey, white, mean of all": plain,
        "noise": torch.rand(32, *images.shape[1:], generator=generator),
    }
    rows = []
    for name, pictured in sets.items():
        values = np.array([match.value for match in match_pixels(pictured, references())])
        quantiles = np.quantile(values, list(QUANTILES.values())).tolist()
        copied = float(np.mean(values <= PIXELS.threshold))
        rows.append({"set": name, "pictures": len(values), "copied": copied, "quantiles": quantiles})
    return rows


def page(rows: list[Row]) -> Iterator[str]:
    """One row a set."""
    lines = []
    for row in rows:
        quantiles = [f"{q:.3f}" for q in row["quantiles"]]
        lines.append([row["set"], str(row["pictures"]), f"{row['copied']:.3f}", *quantiles])
    yield from table(["set", "pictures", "counted as copies", *QUANTILES], lines)


STUDY = Study(title="", about="", page=page, measure=measure, options={"data": ""})
