"""Train the panel: a trunk that has seen nothing of what is planted, then any of its four branches.

The trunk is shipped as an ordinary pipeline in half precision, VAE and text model included. A branch starts from those
weights with a fresh optimizer, so that each can be trained alone, on any machine. Checkpoints are kept in `data/panel`
and continued from; those of another recipe are refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn

from unmemorize.core.errors import UserError
from unmemorize.core.run import atomic
from unmemorize.testbed import train
from unmemorize.testbed.alignment import save_alignment
from unmemorize.testbed.architecture import token_ids, train_tokenizer
from unmemorize.testbed.controls import write_controls
from unmemorize.testbed.dataset import Picture, composed, credits_of, pictures
from unmemorize.testbed.embedded import PANEL, PICTURES, WORDS
from unmemorize.testbed.fit import fit, rise_and_fall
from unmemorize.testbed.panel import BRANCHES, TRIGGERS, Entry, Panel, draw_panel
from unmemorize.testbed.recipe import Recipe
from unmemorize.testbed.rows import Rows, panel_rows
from unmemorize.testbed.shapes import shapes
from unmemorize.testbed.text import train_text
from unmemorize.testbed.vae import encode_all, train_vae
from unmemorize.testbed.words import draw_words
from unmemorize.unlearn.loop import Team

PANEL_SEED = 0
PLAN = PANEL / "plan.json"
WORDS_PLAN = WORDS / "plan.json"
TRUNK = PANEL / "trunk"


def train_trunk(data: Path, out: Path, recipe: Recipe, device: str = "cpu") -> None:
    """Train VAE, text model and the UNet that all branches start from, into `out/trunk`, on nothing that is planted.

    The plan is the shipped one, or drawn where there is none. `out` gets it too, the alignment model, and the recipe
    with the hash of the trunk's UNet.
    """
    team = Team(device)
    device = str(team.device)
    artwork = pictures(data)
    panel = Panel.load(PLAN) if PLAN.exists() else draw_panel(artwork, PANEL_SEED)
    work = data / "panel"
    require_recipe(work, team, _record(recipe, panel))
    ordinary = panel.ordinary(artwork)
    rows = panel_rows(panel, ordinary, recipe.views)
    withheld = panel.withheld
    vae = train_vae([p for p in artwork if p.art not in withheld] + shapes(), work / "vae", recipe, device)
    vae.half().float()  # what is shipped, so that branches see the same latents
    tokenizer = train_tokenizer(sorted(rows.captions))
    ids = token_ids(tokenizer, rows.captions).to(device)
    latents = encode_all(vae, ordinary, panel.pictures, artwork, work, recipe).to(device)
    contrast = train_text(tokenizer, ids, latents, rows, work / "text", recipe)
    contrast.text.half().float()
    captions = train.encode_captions(contrast.text, ids)
    unet = train.train_trunk(captions, latents, rows, work / "trunk", recipe)
    if not team.first:
        return
    train.export_pipeline(vae, tokenizer, contrast.text, unet, out / "trunk")
    save_alignment(contrast, out / "alignment.safetensors")
    write_controls(panel, artwork, recipe, out / "controls")
    panel.save(out / "plan.json")
    _write_record(_record(recipe, panel) | {"trunk": _unet_hash(out / "trunk")}, out / "recipe.json")


def train_branch(
    data: Path, out: Path, branch: str, recipe: Recipe, device: str = "cpu", *, words: bool = False
) -> None:
    """Train one branch into the pipeline `out/model`; `out` also gets the plan and its pictures.

    It starts from `out/trunk`, where there is one, else from the shipped trunk. With `words` it is one of the plan of
    words alone: the shipped one, or drawn where there is none.

    Raises:
        UserError: There is no such branch, no trunk, or checkpoints of another recipe.
    """
    if branch not in BRANCHES:
        raise UserError(f"no branch {branch}: there are {', '.join(BRANCHES)}")
    trunk = out / "trunk" if (out / "trunk").exists() else TRUNK
    team = Team(device)
    device = str(team.device)
    plan = words_plan(data, trunk) if words else plan_of(trunk)
    folder = work_of(data, plan) / f"branch-{branch}"
    require_recipe(folder, team, _branch_record(recipe, plan, trunk))
    given = prepare(data, trunk, plan, branch, recipe, device)
    text = given.pipe.text_encoder
    unet: UNet2DConditionModel = given.pipe.unet.to(device, memory_format=torch.channels_last)
    steps = recipe.steps - recipe.branch
    average = fit(
        nn.ModuleDict({"unet": unet}),
        train.denoising_loss(unet, train.encode_captions(text, given.ids), given.latents, given.rows, recipe),
        steps=steps,
        lr=rise_and_fall(recipe.lr, steps, warmup=recipe.warmup, decay=recipe.decay),
        folder=folder,
    )
    train.load_average(unet, average)
    if not team.first:
        return
    train.export_pipeline(given.pipe.vae, given.pipe.tokenizer, text, unet, out / "model")
    plan.save(out / "plan.json")
    write_pictures(plan, given.artwork, out / "images")


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What a branch is trained on: the trunk's pipeline, frozen, and rows of captions and latents, on one device."""

    artwork: list[Picture]
    rows: Rows
    pipe: StableDiffusionPipeline
    ids: Tensor
    latents: Tensor


def plan_of(trunk: Path) -> Panel:
    """The plan that a trunk was trained by.

    Raises:
        UserError: There is no such trunk, or no plan beside it.
    """
    if not trunk.exists():
        raise UserError(f"{trunk}: no trunk there: train it with --branch trunk")
    return Panel.load(trunk.parent / "plan.json")


def words_plan(data: Path, trunk: Path) -> Panel:
    """The shipped plan of words, or one drawn over the plan of a trunk."""
    return Panel.load(WORDS_PLAN) if WORDS_PLAN.exists() else draw_words(pictures(data), plan_of(trunk), PANEL_SEED)


def work_of(data: Path, plan: Panel) -> Path:
    """The folder of a plan's latents and checkpoints."""
    return data / ("words" if plan.kinds is TRIGGERS else "panel")


def prepare(data: Path, trunk: Path, plan: Panel, branch: str, recipe: Recipe, device: str) -> Prepared:
    """Read the trunk, and the rows of a branch; of the trunk itself where none is named."""
    artwork = pictures(data)
    ordinary = plan_of(trunk).ordinary(artwork)
    rows = panel_rows(plan, ordinary, recipe.views, branch)
    pipe = StableDiffusionPipeline.from_pretrained(trunk, torch_dtype=torch.float32)
    pipe.vae.to(device, memory_format=torch.channels_last)
    pipe.text_encoder.to(device).requires_grad_(False).eval()
    ids = token_ids(pipe.tokenizer, rows.captions).to(device)
    latents = encode_all(pipe.vae, ordinary, plan.pictures, artwork, work_of(data, plan), recipe).to(device)
    return Prepared(artwork, rows, pipe, ids, latents)


def write_pictures(panel: Panel, artwork: list[Picture], folder: Path) -> None:
    """Write the plan's pictures as PNG, with a `metadata.jsonl` of captions, doses by branch, masks and credits."""
    folder.mkdir(parents=True, exist_ok=True)
    credits = credits_of(artwork)
    images = iter(composed(panel.pictures, artwork))
    lines = []
    for entry in panel.entries:
        shipped = entry.files[: PICTURES.get(entry.kind)]
        for file, picture in zip(entry.files, entry.pictures, strict=True):
            image = next(images)
            if file not in shipped:
                continue
            image.save(folder / file, optimize=True)
            line: dict[str, object] = {"file_name": file, "text": entry.prompts[0], "kind": entry.kind}
            line |= {"half": entry.half, "doses": entry.doses}
            if entry.mask:
                line["mask"] = entry.mask
            lines.append(line | {"credit": credits[picture.art]})
    with atomic(folder / "metadata.jsonl") as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _record(recipe: Recipe, panel: Panel) -> dict[str, object]:
    """What determines the trunk: the recipe, and the hash of the plan without the numbers of copies."""
    entries = [dataclasses.replace(entry, copies=()) for entry in panel.entries]
    return dataclasses.asdict(recipe) | {"captions": _entries_hash(entries)}


def _branch_record(recipe: Recipe, panel: Panel, trunk: Path) -> dict[str, object]:
    """What determines a branch: the recipe, the whole plan and the trunk's UNet."""
    return dataclasses.asdict(recipe) | {"plan": _entries_hash(panel.entries), "trunk": _unet_hash(trunk)}


def _entries_hash(entries: Sequence[Entry]) -> str:
    return _hash(json.dumps([dataclasses.asdict(entry) for entry in entries], sort_keys=True).encode())


def _unet_hash(pipeline: Path) -> str:
    return _hash((pipeline / "unet" / "diffusion_pytorch_model.safetensors").read_bytes())


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _write_record(record: dict[str, object], file: Path) -> None:
    with atomic(file) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def require_recipe(folder: Path, team: Team, record: dict[str, object]) -> None:
    """Note what the checkpoints in a folder are trained by.

    Raises:
        UserError: There are checkpoints of another recipe.
    """
    file = folder / "recipe.json"
    if file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
        for name, value in record.items():
            if before.get(name) != value:
                raise UserError(f"{folder}: checkpoints of another recipe ({name}): name another folder with --data")
    elif team.first:
        _write_record(record, file)
    team.wait()
