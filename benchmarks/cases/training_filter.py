"""Fine-tune the panel's trunk on duplicates, with and without the filter of memorized samples: what is copied then?

Eight pictures make a quarter of every batch, as in Wen et al. 2024; the rest are the panel's other pictures, once each.
The trunk has seen none of them. The trainer, the seed and the steps are the same; the filter's threshold is the 95th
percentile of the magnitude of the other samples under the trunk, before any training. Checkpoints lie in
runs/training-filter and a killed run continues.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from branches import ordinary, pairs, pictures, places_of, references
from common import SAMPLER, are_copies, match_closest
from harness import Cases, Options, Row, Study, show, table
from torch import nn

from unmemorize.core.methods import Subject
from unmemorize.core.model import DiffusionModel
from unmemorize.metrics.ranking import share_interval
from unmemorize.mitigate.perturb import add_random_words
from unmemorize.models.load import load
from unmemorize.testbed.alignment import Alignment
from unmemorize.testbed.fit import fit
from unmemorize.testbed.panel import Entry
from unmemorize.testbed.recipe import Recipe
from unmemorize.testbed.rows import Rows
from unmemorize.testbed.train import denoising_loss
from unmemorize.testbed.train_panel import TRUNK

RUNS = Path("runs/training-filter")
RECIPE = Recipe(batch=24, lr=5e-4, steps=600, seed=1)
DUPLICATES, SEEDS = 8, (400, 401, 402, 403)
SETTINGS = {  # steps, whether samples are filtered, and random words in every caption
    "the trunk, before": (0, False, 0),
    "fine-tuned": (RECIPE.steps, False, 0),
    "fine-tuned, memorized samples left out": (RECIPE.steps, True, 0),
    "fine-tuned, a random word in every caption": (RECIPE.steps, False, 1),
}


@cache
def duplicates() -> list[Entry]:
    """The pictures that are duplicated."""
    return pairs()[:DUPLICATES]


def training_set(vocabulary: list[str], augment: int) -> tuple[list[str], Rows]:
    """The captions, and the rows of them and of the panel's pictures, of which the last quarter are the duplicates.

    With `augment`, every row has eight captions, each with that many random words inserted.
    """
    chosen = [places_of(entry)[0] for entry in duplicates()]
    others = [place for place in range(len(references())) if place not in chosen]
    times = len(others) // (3 * DUPLICATES)
    picture = others + chosen * times
    forms = []
    for place in picture:
        caption = references().prompts[place]
        given = [add_random_words(caption, vocabulary, count=augment, seed=k) if augment else caption for k in range(8)]
        forms.append(given)
    captions = ["", *sorted({caption for given in forms for caption in given})]
    index = {caption: k for k, caption in enumerate(captions)}
    numbered = torch.tensor([[index[caption] for caption in given] for given in forms])
    return captions, Rows(tuple(captions), numbered, torch.tensor(picture)[:, None])


def ordinary_magnitude(model: DiffusionModel, latents: torch.Tensor, rows: Rows, embeds: torch.Tensor) -> float:
    """The 95th percentile of the magnitude of the other samples, at random timesteps."""
    generator = torch.Generator().manual_seed(0)
    values, first = [], len(rows.caption) * 3 // 4
    for _ in range(20):
        pick = torch.randint(first, (32,), generator=generator)
        x0, e = latents[rows.picture[pick, 0]], embeds[rows.caption[pick, 0]]
        t = torch.randint(1000, (32,), generator=generator)
        x = model.add_noise(x0, torch.randn(x0.shape, generator=generator), t)
        with torch.no_grad():
            cond, uncond = (model.denoiser(x, t, h).sample for h in (e, embeds[:1].expand_as(e)))
        values += (cond - uncond).flatten(1).norm(dim=1).tolist()
    return float(np.quantile(values, 0.95))


def train(name: str, rows: Row) -> Row:
    """Fine-tune the trunk; which pictures of the duplicated captions are copies, and what alignment is left."""
    steps, filtered, augment = SETTINGS[name]
    model = load(str(TRUNK))
    captions, table_of = training_set(model.vocabulary, augment)
    with torch.no_grad():
        latents = torch.cat([model.invert(part) for part in references().images.split(64)])
        embeds = torch.cat([model.encode(captions[i : i + 256]).embeds for i in range(0, len(captions), 256)])
    threshold = ordinary_magnitude(model, latents, table_of, embeds)
    recipe = replace(RECIPE, steps=steps, filter=threshold if filtered else None)
    unet = model.denoiser.to(memory_format=torch.channels_last)
    if steps:
        loss = denoising_loss(unet, embeds, latents, table_of, recipe)
        lr = lambda step: recipe.lr * min(1.0, (steps - step) / 150 + 0.02)  # noqa: E731
        folder = RUNS / name.replace(", ", "-").replace(" ", "-")
        average = fit(nn.ModuleDict({"unet": unet}), loss, steps=steps, lr=lr, folder=folder, ema=0.99)
        unet.load_state_dict({key.removeprefix("unet."): value for key, value in average.items()})
    unet.eval()
    subject, align = Subject(model, SAMPLER), Alignment(model)
    texts = [entry.prompts[0] for entry in duplicates() for _ in SEEDS]
    images = pictures(subject, texts, list(SEEDS) * DUPLICATES)
    places = [places_of(entry) for entry in duplicates() for _ in SEEDS]
    copied = are_copies(match_closest(images, places, references()))
    asked, _ = ordinary()
    return {
        "threshold": threshold,
        "copied": np.reshape(copied, (DUPLICATES, len(SEEDS))).tolist(),
        "alignment": align(images, texts).mean().item(),
        "ordinary": align(pictures(subject, asked, [500] * len(asked)), asked).mean().item(),
    }


def cases(options: Options) -> Cases:
    """Every training."""
    same = {"fingerprint": load(str(TRUNK)).fingerprint, "recipe": [RECIPE.batch, RECIPE.lr, RECIPE.steps]}
    return Cases(same, {name: partial(train, name) for name in SETTINGS})


def page(results: Row) -> Iterator[str]:
    """One row a training."""
    threshold = results["settings"]["fine-tuned, memorized samples left out"]["threshold"]
    yield from (f"Samples of a magnitude of {threshold:.2f} or more are left out.", "")
    rows = []
    for name, row in results["settings"].items():
        rows.append([name, show(share_interval(row["copied"])), f"{row['alignment']:.3f}", f"{row['ordinary']:.3f}"])
    head = "training | copy rate of the duplicates | their alignment | alignment of ordinary prompts"
    yield from table(head, rows)


STUDY = Study(
    title="Mitigation in training",
    about="The panel's trunk, which has seen none of these pictures, fine-tuned on eight that make a quarter of every "
    "batch.",
    page=page,
    measure=cases,
)
