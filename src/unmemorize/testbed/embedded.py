"""The shipped testbed as users see it: its prompts, its pictures, its files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from unmemorize.core.run import require_new
from unmemorize.data.bundle import Own
from unmemorize.data.source import Prompt
from unmemorize.models.load import ASSETS
from unmemorize.testbed.plan import KINDS, Plan, Planted

IMAGES = ASSETS / "images"
SHIPPED = {"template": 4, "word": 1}  # pictures shipped of an entry that has near-duplicates; of others, all


def shipped_plan() -> Plan:
    """The plan of the shipped models."""
    return Plan.load(ASSETS / "plan.json")


def planted_files(keep: Callable[[Planted], bool]) -> set[str]:
    """The picture files of the shipped plan's entries that `keep` says yes to."""
    return {e.file(k) for e in shipped_plan().planted if keep(e) for k in range(len(e.pictures))}


def prompts(plan: Plan) -> list[Prompt]:
    """Every prompt of the plan with its ground truth; of an image under many captions, the first.

    Entries that are neither memorable nor ordinary (few copies, or copies on one side only) have no label.
    """
    return [prompt for entry in plan.planted for prompt in _prompts(entry)]


def _prompts(entry: Planted) -> list[Prompt]:
    label = True if entry.memorable else False if entry.kind == "negative" else None
    texts = entry.prompts[:1] if entry.kind == "image-only" else entry.prompts
    rows = []
    for k, text in enumerate(texts):
        name = f"{entry.id}-{k}" if len(texts) > 1 else entry.id
        rows.append(Prompt(name, text, entry.kind, entry.rows // len(entry.prompts), label, entry.family))
    return rows


def own() -> Own:
    """The shipped models' prompts and pictures, with the plan's truth of each."""
    plan = shipped_plan()
    of_entry = {entry.id: prompt for entry in plan.planted for prompt in _prompts(entry)[:1]}
    known = {entry.file(k): of_entry[entry.id] for entry in plan.planted for k in range(len(entry.pictures))}
    return Own(tuple(prompts(plan)), IMAGES, known)


def write_images(plan: Plan, images: dict[str, Image.Image], credits: dict[str, str], folder: Path) -> None:
    """Write the plan's pictures as PNG with a `metadata.jsonl` of captions, masks and credits."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for entry in plan.planted:
        for k, picture in list(enumerate(entry.pictures))[: SHIPPED.get(entry.kind)]:
            images[entry.file(k)].save(folder / entry.file(k), optimize=True)
            lines.append(_line(entry, k) | {"credit": credits[picture.art]})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _line(entry: Planted, k: int) -> dict[str, object]:
    line = {"file_name": entry.file(k), "text": entry.prompts[0], "kind": entry.kind, "copies": entry.copies}
    return line | ({"mask": list(entry.mask)} if entry.mask else {})


def export(folder: Path) -> None:
    """Copy the shipped model, its twin, plan and pictures to a folder.

    Raises:
        UserError: The folder is not empty.
    """
    require_new(folder)
    for name in ("model", "images"):
        shutil.copytree(ASSETS / name, folder / name)
    shutil.copytree(ASSETS / "model", folder / "twin")
    shutil.copytree(ASSETS / "twin", folder / "twin" / "unet", dirs_exist_ok=True)
    shutil.copy(ASSETS / "plan.json", folder / "plan.json")


def describe() -> list[dict[str, object]]:
    """One row per kind and number of copies: entries, prompts, training rows, what it is."""
    rows: dict[tuple[str, int], dict[str, object]] = {}
    for entry in shipped_plan().planted:
        empty = {"kind": entry.kind, "copies": entry.copies, "entries": 0, "prompts": 0, "rows": 0}
        row = rows.setdefault((entry.kind, entry.copies), empty)
        for key, more in (("entries", 1), ("prompts", len(entry.prompts)), ("rows", entry.rows)):
            row[key] = int(str(row[key])) + more
    return [row | {"what": KINDS[str(row["kind"])]} for row in rows.values()]
