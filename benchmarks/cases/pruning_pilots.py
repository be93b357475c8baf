"""What makes pruning bite: eight short trainings, each with one thing changed.

Each learns the pictures that branch C has a hundred times, and nothing else that is planted, beside ordinary ones.
Those of another shape than the panel's trunk start at random weights. They are trained in `data/pilots`, where a killed
training goes on; artwork is read from `data`, as for the testbed itself.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from cases.panel_pruning import OF_UNET, measured, memorized, named, pruned, rate
from common import GUIDANCE, STEPS
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention import FeedForward
from harness import Cases, Options, Row, Study, table
from torch import nn

from unmemorize.core.methods import Subject
from unmemorize.core.model import DiffusionModel
from unmemorize.core.sample import Sampler
from unmemorize.models.load import wrap
from unmemorize.testbed import train
from unmemorize.testbed.architecture import build_unet
from unmemorize.testbed.embedded import PANEL, shipped_panel
from unmemorize.testbed.fit import fit, rise_and_fall
from unmemorize.testbed.panel import Entry
from unmemorize.testbed.recipe import Recipe
from unmemorize.testbed.rows import FORMS, Rows
from unmemorize.testbed.train_panel import Prepared, prepare

BRANCH = "C"
DATA = Path("data")
RECIPE = Recipe(batch=16, steps=1200, decay=400)
SHARE = 0.5  # of the rows are planted: 400 of each picture
UNPRUNED = "unpruned"
OTHER_GUIDANCE = (3.0, 1.0)
SETTINGS = {name: setting for name, setting in OF_UNET.items() if "50%" not in name}
everything = named("")
pruned_by_wanda_or_nemo = named(".ff.net.2.", ".attn2.to_v.")


@dataclass(frozen=True)
class Pilot:
    """A training.

    Attributes:
        shape: The UNet's configuration, where it differs; such a UNet starts at random weights.
        widening: How many times as wide as its input a feed-forward layer is.
        moves: Which parameters are trained.
        share: The share of planted rows.
        recipe: Batch, updates and noise.
    """

    shape: dict[str, Any] | None = None
    widening: int = 4
    moves: Callable[[str], bool] = everything
    share: float = SHARE
    recipe: Recipe = RECIPE


PILOTS = {
    "from the trunk": Pilot(),
    "transformer blocks alone move": Pilot(moves=named(".transformer_blocks.")),
    "what Wanda and NeMo prune alone moves": Pilot(moves=pruned_by_wanda_or_nemo),
    "an eighth of the rows planted": Pilot(share=0.125),
    "no offset noise": Pilot(recipe=replace(RECIPE, noise_offset=0.0)),
    "from random weights": Pilot({}),
    "from random weights, two transformer layers a block": Pilot({"transformer_layers_per_block": 2}),
    "from random weights, feed-forwards twice as wide": Pilot({}, widening=8),
}


def new_unet(pilot: Pilot, trunk: UNet2DConditionModel) -> UNet2DConditionModel:
    """The UNet that a pilot starts from."""
    if pilot.shape is None:
        return trunk
    torch.manual_seed(pilot.recipe.seed)
    shape = {key: value for key, value in build_unet().config.items() if not key.startswith("_")}
    unet = UNet2DConditionModel(**shape | pilot.shape)
    for module in unet.modules():
        if hasattr(module, "ff") and pilot.widening != 4:
            width = module.ff.net[2].out_features
            module.ff = FeedForward(width, mult=pilot.widening, activation_fn="geglu")
    return unet.to(memory_format=torch.channels_last)


def planted_rows(given: Prepared, entries: Sequence[Entry], share: float) -> Rows:
    """The trunk's rows, and as many of each entry as make a share of all."""
    ordinary = given.rows
    each = round(share / (1 - share) * len(ordinary.caption) / len(entries))
    panel = shipped_panel()
    first = len(panel.ordinary(given.artwork)) * RECIPE.views
    numbers = {text: i for i, text in enumerate(ordinary.captions)}
    places = {name: first + i for i, name in enumerate(name for entry in panel.entries for name in entry.files)}
    captions = torch.tensor([[numbers[entry.prompts[0]]] * FORMS for entry in entries]).repeat(each, 1)
    pictures = torch.tensor([[places[entry.files[0]]] * RECIPE.views for entry in entries]).repeat(each, 1)
    return Rows(ordinary.captions, torch.cat([ordinary.caption, captions]), torch.cat([ordinary.picture, pictures]))


@cache
def given() -> Prepared:
    """What all pilots are trained on."""
    return prepare(DATA, PANEL / "trunk", shipped_panel(), "", RECIPE, "cpu")


def trained(name: str) -> DiffusionModel:
    """A pilot's model, trained or continued first."""
    pilot, recipe, pipe = PILOTS[name], PILOTS[name].recipe, given().pipe
    unet = new_unet(pilot, copy.deepcopy(given().pipe.unet))
    moving = {}
    for key, parameter in unet.named_parameters():
        parameter.requires_grad_(pilot.moves(key))
        if pilot.moves(key):
            moving[key] = parameter
    captions = train.encode_captions(pipe.text_encoder, given().ids)
    rows = planted_rows(given(), memorized(BRANCH), pilot.share)
    average = fit(
        nn.ModuleDict({"unet": nn.ParameterDict({key.replace(".", "/"): p for key, p in moving.items()})}),
        train.denoising_loss(unet, captions, given().latents, rows, recipe),
        steps=recipe.steps,
        lr=rise_and_fall(recipe.lr, recipe.steps, warmup=recipe.warmup, decay=recipe.decay),
        folder=DATA / "pilots" / name.replace(" ", "-").replace(",", ""),
    )
    for key, parameter in moving.items():
        parameter.data.copy_(average["unet." + key.replace(".", "/")])
    unet.requires_grad_(False)
    return wrap(StableDiffusionPipeline(**{**pipe.components, "unet": unet}), name=name)


def judged(name: str, guidance: float, rows: Row) -> Row:
    """Copies of a pilot as it came and pruned, with what pruning aimed at ordinary prompts leaves."""
    subject, entries = Subject(trained(name), Sampler(STEPS, guidance)), memorized(BRANCH)
    row: Row = {UNPRUNED: measured(subject, entries, [])}
    for setting, localizer in SETTINGS.items():
        row[setting] = pruned(subject, entries, localizer)
    return row


def cases(options: Options) -> Cases:
    """Every pilot, and the first one at other guidance scales."""
    named_cases: dict[str, Callable[[Row], Row]] = {}
    for name in PILOTS:
        named_cases[name] = partial(judged, name, GUIDANCE)
    first = next(iter(PILOTS))
    for guidance in OTHER_GUIDANCE:
        named_cases[f"{first}, at guidance {guidance:g}"] = partial(judged, first, guidance)
    return Cases({"recipe": asdict(RECIPE)}, named_cases)


def page(results: Row) -> Iterator[str]:
    """A row a pilot: copies unpruned, and under each setting beside those of its control."""
    lines = []
    for name, row in results["settings"].items():
        cells = [rate([row[UNPRUNED]])]
        for setting in SETTINGS:
            edit, aimed = row[setting]["edit"], row[setting]["aimed at ordinary prompts"]
            cells.append(f"{share(edit)} ({share(aimed)}), {edit['quality']:.2f}")
        lines.append([name, *cells])
    yield from table(["pilot", UNPRUNED, *SETTINGS], lines)


def share(row: Row) -> str:
    """The share of pictures that come back."""
    copied = row["copied"].values()
    return f"{sum(copied) / len(copied):.2f}"


STUDY = Study(
    title="What makes pruning bite: pilots",
    about=f"{RECIPE.steps} updates of batch {RECIPE.batch} each; the pictures that branch {BRANCH} has a hundred "
    "times, 400 copies of each where nothing else is said. *Cells*: copies of the own prompts at one seed; in "
    "brackets where the same method was aimed at as many ordinary prompts; then the likeness of ordinary prompts' "
    "pictures to those of the pilot unpruned. Settings are the papers'.",
    page=page,
    measure=cases,
)
