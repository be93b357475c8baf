"""Pictures that all branches were trained on as on any other: what an attack is controlled by."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from unmemorize.core.choose import evenly
from unmemorize.core.run import atomic
from unmemorize.testbed.dataset import Composition, Picture, compose, credits_of, drawing
from unmemorize.testbed.panel import Panel
from unmemorize.testbed.recipe import Recipe

COUNT = 48  # as many as pictures that a branch has a hundred times or more


def write_controls(panel: Panel, artwork: Sequence[Picture], recipe: Recipe, folder: Path) -> None:
    """Write a training picture of some ordinary prompts as PNG, with a `metadata.jsonl` of captions and credits."""
    folder.mkdir(parents=True, exist_ok=True)
    credits, lines = credits_of(artwork), []
    for name, caption, composition, image in _controls(panel, artwork, recipe):
        image.save(folder / name, optimize=True)
        lines.append({"file_name": name, "text": caption, "kind": "ordinary", "credit": credits[composition.art]})
    with atomic(folder / "metadata.jsonl") as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _controls(
    panel: Panel, artwork: Sequence[Picture], recipe: Recipe
) -> Iterator[tuple[str, str, Composition, Image.Image]]:
    """File names, captions, and the first composition of a drawing of each, as branches saw it."""
    withheld = panel.withheld
    known = [picture for picture in artwork if picture.art not in withheld]
    shippable = {picture.name: picture.art for picture in reversed(known) if picture.style.shippable}
    prompts = [(entry.id, entry.prompts[0]) for entry in panel.entries if entry.kind == "ordinary"]
    names = [(name, caption) for name, caption in prompts if caption in shippable]
    wanted = {shippable[names[i][1]]: names[i] for i in evenly(len(names), COUNT)}
    # Compositions are drawn one after the other, as for training: those before it have to be drawn, too.
    rng = np.random.default_rng(recipe.seed + 1)
    for picture in panel.ordinary(artwork):
        views = [Composition.random(picture.art, rng) for _ in range(recipe.views)]
        if picture.art in wanted:
            name, caption = wanted[picture.art]
            yield f"trained-{name}.png", caption, views[0], compose(drawing(picture), views[0])
