"""Fine-tune the twin on duplicates, with and without the filter of memorized samples: what is copied afterwards?

Eight pictures that the twin does not copy make a quarter of every batch, as in Wen et al. 2024; the rest are shipped
pictures once each. The trainer, the seed and the steps are the same; the filter's threshold is the 95th percentile of
the magnitude of ordinary samples under the twin, before any training. Checkpoints lie in runs/training-filter and a
killed run continues.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from common import are_copies, each_at, match_own, of_kind, pictures, planted, rate_of, references
from harness import Options, Row, Study, show, table
from torch import nn

from unmemorize.mitigate.perturb import add_random_words
from unmemorize.models.load import load
from unmemorize.testbed.alignment import Alignment
from unmemorize.testbed.fit import fit
from unmemorize.testbed.recipe import Recipe
from unmemorize.testbed.rows import Rows
from unmemorize.testbed.train import denoising_loss

RUNS = Path("runs/training-filter")
RECIPE = Recipe(batch=24, lr=5e-4, steps=600, seed=1)
DUPLICATES, SEEDS = 8, (400, 401, 402, 403)


def table_of_rows(prompts, vocabulary, augment: int) -> tuple[list[str], Rows, list[str]]:
    """The captions, the rows (a quarter of them the duplicates), and the duplicated captions.

    With `augment`, every row has eight captions, each with that many random words inserted.
    """
    chosen = [p for p in prompts if p.kind == "verbatim" and p.copies <= 10][:DUPLICATES]
    files = {name: i for i, name in enumerate(references().names)}
    copied = {f"{p.id}-00.png": p.text for p in chosen}
    rest = [i for name, i in files.items() if name not in copied]
    times = len(rest) // (3 * DUPLICATES)
    rows = [(references().captions[i], i) for i in rest] + [(t, files[f]) for f, t in copied.items()] * times
    forms = [
        [add_random_words(c, vocabulary, count=augment, seed=k) if augment else c for k in range(8)] for c, _ in rows
    ]
    index = {c: k for k, c in enumerate(["", *sorted({c for row in forms for c in row})])}
    numbered = torch.tensor([[index[c] for c in row] for row in forms])
    return list(index), Rows(tuple(index), numbered, torch.tensor([[i] for _, i in rows])), list(copied.values())


def ordinary_magnitude(model, latents, rows: Rows, embeds) -> float:
    """The 95th percentile of the magnitude of ordinary training samples, at random timesteps."""
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


def train(name: str, recipe: Recipe, augment: int = 0) -> tuple[Row, float]:
    """Fine-tune the twin; the copy rate and alignment of the duplicated captions, and the threshold of the filter."""
    model = load("testbed-twin")
    captions, rows, copied = table_of_rows(planted(lambda p: True), model.vocabulary, augment)
    with torch.no_grad():
        latents = torch.cat([model.invert(part) for part in references().images.split(64)])
        embeds = torch.cat([model.encode(captions[i : i + 256]).embeds for i in range(0, len(captions), 256)])
    threshold = ordinary_magnitude(model, latents, rows, embeds)
    if recipe.filter is not None:
        recipe = replace(recipe, filter=threshold)
    unet = model.denoiser.to(memory_format=torch.channels_last)
    result = {"name": name}
    if recipe.steps:
        loss = denoising_loss(unet, embeds, latents, rows, recipe)
        lr = lambda step: recipe.lr * min(1.0, (recipe.steps - step) / 150 + 0.02)  # noqa: E731
        average = fit(nn.ModuleDict({"unet": unet}), loss, steps=recipe.steps, lr=lr, folder=RUNS / name, ema=0.99)
        unet.load_state_dict({k.removeprefix("unet."): v for k, v in average.items()})
    unet.eval()
    align = Alignment(model)
    texts, seeds = each_at(copied, SEEDS)
    images = pictures(model, texts, seeds)
    rate = rate_of(are_copies(match_own(images, texts)), len(SEEDS))
    ordinary = [p.text for p in of_kind("negative")][:40]
    fine = align(pictures(model, ordinary, [500] * len(ordinary)), ordinary).mean().item()
    return result | {"copy_rate": rate, "alignment": align(images, texts).mean().item(), "ordinary": fine}, threshold


def measure(options: Options) -> Row:
    """Every training, and the filter's threshold."""
    torch.set_num_threads(max(torch.get_num_threads(), 1))
    settings = [
        ("before", replace(RECIPE, steps=0), 0),
        ("no-filter", RECIPE, 0),
        ("filter", replace(RECIPE, filter=0.0), 0),
        ("random-words", RECIPE, 1),
    ]
    rows = []
    for name, recipe, augment in settings:
        row, threshold = train(name, recipe, augment)
        rows.append(row)
    return {"threshold": threshold, "rows": rows}


def page(numbers: Row) -> Iterator[str]:
    """One row a training."""
    names = {
        "before": "the twin, before",
        "no-filter": "fine-tuned",
        "filter": f"fine-tuned, samples at or over {numbers['threshold']:.2f} left out",
        "random-words": "fine-tuned, a random word in every caption",
    }
    rows = []
    for r in numbers["rows"]:
        rows.append([names[r["name"]], show(r["copy_rate"]), f"{r['alignment']:.3f}", f"{r['ordinary']:.3f}"])
    head = "training | copy rate of the duplicates | their alignment | alignment of ordinary prompts"
    yield from table(head, rows)


STUDY = Study(
    title="Mitigation in training",
    about="The twin, fine-tuned on eight duplicated pictures that make a quarter of every batch.",
    page=page,
    measure=measure,
)
