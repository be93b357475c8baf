"""What the embedding attack brings back on the shipped testbed, pruned and not, always beside its controls.

Every setting is a run of `unmemorize attack` in runs/attack-results, which continues where it was stopped; settings
that have not been run yet are missing on the page. `--refined` adds NeMo with refinement, a search of ten minutes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib
from common import memorized_prompts
from harness import OUT, Cases, Options, Row, Study, save_figure, show, table
from matplotlib.figure import Figure

from unmemorize.core.run import atomic
from unmemorize.core.specs import AttackSpec, LocateSpec
from unmemorize.models.load import load
from unmemorize.report.attack import draw_copies
from unmemorize.report.drawing import STYLE
from unmemorize.stages.attack import run_attack
from unmemorize.stages.locate import locate

RUNS = Path("runs/attack-results")
EDITS = {
    "NeMo, refined": "nemo:layers=all",
    "Wanda 1%": "wanda:sparsity=0.01",
    "Wanda 10%": "wanda:sparsity=0.1",
    "Wanda 40%": "wanda:sparsity=0.4",
}
# Kowalczuk et al. 2026 on Stable Diffusion 1.4, from the authors' page: share of copies before and after 50 updates.
PUBLISHED = {"none": ("0.98", "–"), "NeMo": ("0.20", "0.99"), "Wanda 1%": ("0.00", "0.72"), "Wanda 10%": ("–", "0.01")}
CURVES = {  # the same, by number of updates, read off a figure
    "NeMo": {0: 0.20, 1: 0.73, 10: 0.79, 25: 0.94, 50: 0.99},
    "Wanda 1%": {0: 0.00, 1: 0.02, 10: 0.18, 25: 0.49, 50: 0.73},
    "none": {0: 0.00, 1: 0.00, 10: 0.00, 25: 0.00, 50: 0.02},  # of pictures that are not memorized
}


@dataclass(frozen=True)
class Setting:
    """An attack: what was done to the model, where the search starts, how long, and of how many pictures."""

    edit: str
    init: str
    steps: int
    pictures: int

    @property
    def name(self) -> str:
        """As a folder's name."""
        return f"{self.edit}-{self.init}-{self.steps}-{self.pictures}".lower().replace("%", "").replace(" ", "-")


def edit_file(name: str) -> str:
    """The edit that a pruner finds with the memorized prompts, searched once."""
    if name == "none":
        return ""
    prompts = RUNS / "prompts.txt"
    with atomic(prompts) as temporary:
        temporary.write_text("".join(f"{prompt}\n" for prompt in memorized_prompts()), encoding="utf-8")
    path = RUNS / "edits" / f"{name.lower().replace('%', '').replace(' ', '-')}.safetensors"
    if not path.exists():
        locate(LocateSpec(model="testbed-ladder", method=EDITS[name], prompts=str(prompts)), path)
    return str(path)


def attacked(setting: Setting, seeds: int, rows: Row) -> Row:
    """One setting's summary."""
    spec = AttackSpec(
        model="testbed-ladder",
        mitigation=edit_file(setting.edit),
        init=setting.init,  # type: ignore[arg-type]
        updates=setting.steps,
        limit=setting.pictures,
        pictures=seeds,
    )
    summary = run_attack(spec, RUNS / setting.name, lambda _, done, total: print(setting.name, done, total, flush=True))
    return {"edit": setting.edit, "init": setting.init, "run": setting.name} | summary


def cases(options: Options) -> Cases:
    """In the order of what is most wanted."""
    edits = ["none", "Wanda 40%", "Wanda 10%", "Wanda 1%", *(["NeMo, refined"] if options.refined else [])]
    prompt, random = ([Setting(edit, init, 50, options.pictures) for edit in edits] for init in ("prompt", "random"))
    every = [*prompt, Setting("none", "prompt", 500, min(options.pictures, 6)), *random]
    named = {setting.name: partial(attacked, setting, options.seeds) for setting in every}
    return Cases({"fingerprint": load("testbed-ladder").fingerprint, "seeds": options.seeds}, named)


def page(results: Row) -> Iterator[str]:
    """Before and after, the curves, and the costs."""
    rows, seeds = list(results["settings"].values()), results["seeds"]
    yield (
        f"Pictures planted a hundred times or more; {seeds} generation seeds that no search has seen. Controls get the "
        "same attack: *control* was trained on once and is not memorized, *never trained on* is the control mirrored "
        "and with its colour channels exchanged. Published: Stable Diffusion 1.4, from the prompt; to be compared by "
        "sign and order only."
    )
    yield from ("", *before_and_after(rows))
    yield from ("", "Copy rate by number of updates:", "", *curves(rows))
    yield ""
    yield (
        "Within the search budget at most 0.05 of either control's pictures come back. A picture counts if any seed, "
        "after any number of updates in the table above up to the budget, gives a copy, for attacked pictures and "
        f"controls alike; the rates above are shares of generated pictures ({seeds} a picture):"
    )
    yield ""
    yield from costs(rows)
    yield from ("", "![Copy rate by number of updates](results/attack.svg)", "")
    yield "![Targets, pictures of the prompts, and pictures after the attack](results/attack.png)"


def at(row: Row, group: str, steps: int) -> Row:
    """A group's numbers after so many updates."""
    return next(point for point in row["curve"][group] if point["steps"] == steps)


def before_and_after(rows: list[Row]) -> list[str]:
    """One line a setting: its own prompts, 50 updates, both controls, and the published figure."""
    lines = []
    for row in rows:
        before, after = at(row, "attacked", 0), at(row, "attacked", 50)
        known = PUBLISHED.get(row["edit"], ("–", "–")) if row["init"] == "prompt" else ("–", "–")
        lines.append(
            [
                row["edit"],
                row["init"],
                str(row["pictures"]["attacked"]),
                show(row["original"]["attacked"]),
                show(after["copies"]),
                f"{before['similarity']:.2f} → {after['similarity']:.2f}",
                show(row["original"]["control"]),
                show(at(row, "control", 50)["copies"]),
                show(at(row, "unseen", 50)["copies"]),
                f"{after['relative']:.2f}",
                " → ".join(known),
            ]
        )
    columns = "mitigation | start | pictures | own prompts | after 50 updates | similarity | control, own prompts"
    return table(f"{columns} | control, attacked | never trained on, attacked | moved / start | published", lines)


def curves(rows: list[Row]) -> list[str]:
    """Copy rate by number of updates, the control's beside it, then the published curve where there is one."""
    steps = sorted({point["steps"] for row in rows for point in row["curve"]["attacked"]})
    lines = []
    for row in rows:
        for group in ("attacked", "control", "unseen"):
            found = {point["steps"]: f"{point['copies']['value']:.2f}" for point in row["curve"][group]}
            of = f"{row['edit']}, {row['init']} ({row['pictures'][group]} pictures)"
            lines.append([of, group, *(found.get(step, "–") for step in steps)])
    for name, curve in CURVES.items():
        group = "not memorized" if name == "none" else "attacked"
        cells = [f"{curve[step]:.2f}" if step in curve else "–" for step in steps]
        lines.append([f"{name}: published, read off a figure", group, *cells])
    return table(["setting", "pictures", *map(str, steps)], lines)


def costs(rows: list[Row]) -> list[str]:
    """Search budget, what comes back within it of all three groups, and work to extract."""
    lines = []
    for row in rows:
        work = row["work"]["attacked"]
        median = "–" if work["median"] is None else f"{work['median']:.0f}"
        budget = "none" if row["search_budget"] is None else str(row["search_budget"])
        back = [show(row["extracted"][group]) for group in ("attacked", "control", "unseen")]
        lines.append([row["edit"], row["init"], str(row["steps"]), budget, *back, median, str(work["never"])])
    columns = "mitigation | start | updates | search budget | extracted within | control | never trained on"
    return table(f"{columns} | evaluations to the first copy | never copied", lines)


def figure(results: Row) -> None:
    """Copy rate by number of updates, a panel a mitigation, from the prompt."""
    shown = [row for row in results["settings"].values() if row["init"] == "prompt" and row["steps"] == 50]
    with matplotlib.rc_context(STYLE | {"figure.facecolor": "white"}):
        canvas = Figure(figsize=(3.4 * len(shown), 3.2), layout="constrained")
        for axes, row in zip(canvas.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
            draw_copies(axes, row["curve"])
            axes.legend(frameon=False, fontsize="small")
            axes.set_title(row["edit"])
        save_figure(canvas, "attack.svg")
    sheet = RUNS / shown[-1]["run"] / "sheet.png"
    if sheet.exists():
        with atomic(OUT / "attack.png") as temporary:
            shutil.copy(sheet, temporary)


STUDY = Study(
    title="Attacking",
    about="The embedding attack (Kowalczuk et al. 2026), every picture judged against its own target.",
    page=page,
    measure=cases,
    options={"pictures": 12, "seeds": 2, "refined": False},
    figures=figure,
)
