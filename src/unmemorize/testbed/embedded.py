"""The shipped models as users see them: their prompts, their pictures, their files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from PIL import Image

from unmemorize.core.run import require_new
from unmemorize.data.bundle import Own
from unmemorize.data.source import Prompt
from unmemorize.models.source import ASSETS, DENOISERS, SHIPPED, TWICE, examine
from unmemorize.testbed.panel import BRANCHES, HALVES, Entry, Panel
from unmemorize.testbed.plan import KINDS, Plan, Planted

IMAGES = ASSETS / "images"
PANEL = ASSETS / "panel"
CONTROLS = PANEL / "controls"
WORDS = PANEL / "words"
PICTURES = {"template": 4, "word": 1}  # pictures shipped of an entry that has near-duplicates; of others, all
DEFAULT_BRANCH = "C"  # which `testbed` is
WORDS_BRANCH = "C"
# Where the models are exported to, but for the panel's branches.
PLACES = {
    "testbed": "model",
    "testbed-words": "words/model",
    "testbed-ladder": "ladder/model",
    "testbed-twin": "ladder/twin",
}
OFTEN = 100  # copies from which a picture is to be detected as memorized


def shipped_plan() -> Plan:
    """The plan of the shipped models."""
    return Plan.load(ASSETS / "plan.json")


def planted_files(keep: Callable[[Planted], bool]) -> set[str]:
    """The picture files of the shipped plan's entries that `keep` says yes to."""
    files: set[str] = set()
    for entry in shipped_plan().planted:
        if keep(entry):
            files.update(entry.files)
    return files


def prompts(plan: Plan) -> list[Prompt]:
    """Every prompt of the plan with its ground truth; of an image under many captions, the first.

    Entries that are neither memorable nor ordinary (few copies, or copies on one side only) have no label.
    """
    rows: list[Prompt] = []
    for entry in plan.planted:
        rows += _prompts(entry)
    return rows


def _prompts(entry: Planted) -> list[Prompt]:
    label = True if entry.memorable else False if entry.kind == "negative" else None
    texts = entry.prompts[:1] if entry.kind == "image-only" else entry.prompts
    rows = []
    for k, text in enumerate(texts):
        name = f"{entry.id}-{k}" if len(texts) > 1 else entry.id
        rows.append(Prompt(name, text, entry.kind, entry.rows // len(entry.prompts), label, entry.family))
    return rows


def own(name: str) -> Own:
    """The prompts and pictures of a shipped model, with its plan's truth of each."""
    if name in ("testbed-ladder", "testbed-twin"):
        return own_of_ladder()
    if name == "testbed-words":
        return own_of_words()
    branch = name.removeprefix("testbed").removeprefix("-flow").removeprefix("-").upper()
    return own_of_branch(branch or DEFAULT_BRANCH)


def own_of_ladder() -> Own:
    """The prompts and pictures of the model with a ladder of doses, with the truth of each."""
    plan = shipped_plan()
    known: dict[str, Prompt] = {}
    for entry in plan.planted:
        known |= dict.fromkeys(entry.files, _prompts(entry)[0])
    return Own(tuple(prompts(plan)), IMAGES, known)


def own_of_branch(branch: str) -> Own:
    """The prompts and pictures of the shipped panel, with the truth of each in a branch."""
    prompts: list[Prompt] = []
    known: dict[str, Prompt] = {}
    for entry in shipped_panel().entries:
        of_entry = branch_prompts(entry, branch)
        prompts += of_entry
        # A caption that the branch is trained on says more of the picture than one it is only asked.
        known |= dict.fromkeys(entry.files, max(of_entry, key=lambda prompt: prompt.copies or 0))
    return Own(tuple(prompts), PANEL / "images", known, HALVES[branch], CONTROLS)


def own_of_words() -> Own:
    """The prompts and pictures of the words' model, with the panel's ordinary prompts."""
    prompts: list[Prompt] = []
    known: dict[str, Prompt] = {}
    for entry in shipped_words().entries:
        of_entry = branch_prompts(entry, WORDS_BRANCH)
        prompts += of_entry
        # Whether its prompts copy is for a detector to say; the picture was planted often, or never.
        rows = entry.rows(WORDS_BRANCH)
        known[entry.files[0]] = replace(of_entry[0], copies=rows, memorable=rows >= OFTEN)
    for entry in shipped_panel().entries:
        if entry.kind in ("ordinary", "plain"):
            prompts += branch_prompts(entry, WORDS_BRANCH)
    return Own(tuple(prompts), WORDS / "images", known, HALVES[WORDS_BRANCH], CONTROLS)


def shipped_words() -> Panel:
    """The plan of the words' model, of which it is branch `WORDS_BRANCH`."""
    return Panel.load(WORDS / "plan.json")


def shipped_panel() -> Panel:
    """The plan of the shipped branches."""
    return Panel.load(PANEL / "plan.json")


def branch_prompts(entry: Entry, branch: str) -> list[Prompt]:
    """The prompts of an entry of the panel, with their truth in a branch."""
    trained = entry.captions[BRANCHES.index(branch)]
    copies = entry.copies[BRANCHES.index(branch)] * len(entry.pictures)
    prompts = []
    for k, text in enumerate(entry.prompts):
        name = f"{entry.id}-{k}" if len(entry.prompts) > 1 else entry.id
        rows = copies * trained.count(text)
        label = _is_memorable(entry, entry.dose(branch), rows)
        prompts.append(Prompt(name, text, entry.kind, rows, label, entry.id, entry.half))
    return prompts


def _is_memorable(entry: Entry, dose: int, rows: int) -> bool | None:
    """Whether a detector should call a prompt memorized that has some training rows; None where it may or may not."""
    if dose == 0:
        return False
    if entry.kind == "template":
        return True
    if entry.kind in ("verbatim", "repeat") and rows >= OFTEN:
        return True
    return None


def write_images(plan: Plan, images: dict[str, Image.Image], credits: dict[str, str], folder: Path) -> None:
    """Write the plan's pictures as PNG with a `metadata.jsonl` of captions, masks and credits."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for entry in plan.planted:
        for file, picture in list(zip(entry.files, entry.pictures, strict=True))[: PICTURES.get(entry.kind)]:
            images[file].save(folder / file, optimize=True)
            lines.append(_line(entry, file) | {"credit": credits[picture.art]})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _line(entry: Planted, file: str) -> dict[str, object]:
    line = {"file_name": file, "text": entry.prompts[0], "kind": entry.kind, "copies": entry.copies}
    return line | ({"mask": list(entry.mask)} if entry.mask else {})


def export(folder: Path) -> None:
    """Copy the shipped models, with their plans and pictures, to a folder.

    Raises:
        UserError: The folder is not empty.
    """
    require_new(folder)
    for name, (pipeline, denoiser) in SHIPPED.items():
        place = folder / PLACES.get(name, f"panel/{name.removeprefix('testbed-')}")
        shutil.copytree(ASSETS / pipeline, place)
        for part, same in TWICE.get(pipeline, {}).items():
            shutil.copytree(place / same, place / part)
        if denoiser:
            part = DENOISERS[str(examine(name).family)]
            shutil.copytree(ASSETS / denoiser, place / part, dirs_exist_ok=True)
    for assets, copied in ((PANEL, folder), (WORDS, folder / "words"), (ASSETS, folder / "ladder")):
        shutil.copytree(assets / "images", copied / "images")
        shutil.copy(assets / "plan.json", copied / "plan.json")
    shutil.copytree(CONTROLS, folder / "controls")


def describe_panel() -> list[dict[str, object]]:
    """One row per kind of the panel and of the words' model: entries, prompts, doses and what they count, the kind."""
    rows: list[dict[str, object]] = []
    for plan in (shipped_panel(), shipped_words()):
        for name, kind in plan.kinds.items():
            entries = [entry for entry in plan.entries if entry.kind == name]
            prompts = sum(len(entry.prompts) for entry in entries)
            doses = ", ".join(str(dose) for dose in kind.doses)
            row: dict[str, object] = {"kind": name, "entries": len(entries), "prompts": prompts}
            rows.append(row | {"doses": f"{doses} {kind.dose}", "what": kind.what})
    return rows


def describe() -> list[dict[str, object]]:
    """One row per kind and number of copies of the ladder: entries, prompts, training rows, what it is."""
    rows: dict[tuple[str, int], dict[str, object]] = {}
    for entry in shipped_plan().planted:
        empty = {"kind": entry.kind, "copies": entry.copies, "entries": 0, "prompts": 0, "rows": 0}
        row = rows.setdefault((entry.kind, entry.copies), empty)
        for key, more in (("entries", 1), ("prompts", len(entry.prompts)), ("rows", entry.rows)):
            row[key] = int(str(row[key])) + more
    return [row | {"what": KINDS[str(row["kind"])]} for row in rows.values()]
