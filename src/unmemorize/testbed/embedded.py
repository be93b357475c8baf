"""The shipped models as users see them: their prompts, their pictures, their files."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from unmemorize.core.run import require_new
from unmemorize.data.bundle import Own
from unmemorize.data.source import Prompt
from unmemorize.models.source import ASSETS, DENOISERS, SHIPPED, TWICE, examine
from unmemorize.testbed.panel import BRANCHES, HALVES, Entry, Panel

PANEL = ASSETS / "panel"
RETRAINED = PANEL / "retrained"
OF_ANOTHER_SEED = "testbed-retrained-c"  # branch C of a second trunk, with a VAE and a text model of its own
CONTROLS = PANEL / "controls"
WORDS = PANEL / "words"
PICTURES = {"template": 4}  # pictures shipped of an entry that has near-duplicates; of others, all
DEFAULT_BRANCH = "C"  # which `testbed` is
WORDS_BRANCH = "C"
# Where the models are exported to, but for the panel's branches.
PLACES = {"testbed": "model", "testbed-words": "words/model"}
OFTEN = 100  # copies from which a picture is to be detected as memorized


def own(name: str) -> Own:
    """The prompts and pictures of a shipped model, with its plan's truth of each."""
    if name == "testbed-words":
        return own_of_words()
    _, _, branch = name.rpartition("-")
    of_branch = own_of_branch(DEFAULT_BRANCH if name == "testbed" else branch.upper())
    if name == OF_ANOTHER_SEED:  # its ordinary pictures are composed anew
        return replace(of_branch, controls=RETRAINED / "controls")
    return of_branch


def own_of_branch(branch: str) -> Own:
    """The prompts and pictures of the shipped panel, with the truth of each in a branch."""
    prompts: list[Prompt] = []
    known: dict[str, Prompt] = {}
    for entry in shipped_panel().entries:
        of_entry = branch_prompts(entry, branch)
        prompts += of_entry
        # A caption that the branch is trained on says more of the picture than one it is only asked.
        known |= dict.fromkeys(entry.files, max(of_entry, key=lambda prompt: prompt.copies or 0))
    return Own(tuple(prompts), PANEL / "images", known, CONTROLS, HALVES[branch])


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
    return Own(tuple(prompts), WORDS / "images", known, CONTROLS, HALVES[WORDS_BRANCH])


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
    for assets, copied in ((PANEL, folder), (WORDS, folder / "words")):
        shutil.copytree(assets / "images", copied / "images")
        shutil.copy(assets / "plan.json", copied / "plan.json")
    shutil.copytree(CONTROLS, folder / "controls")
    shutil.copytree(RETRAINED / "controls", folder / "panel" / "retrained-controls")


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
