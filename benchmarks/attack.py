"""What the embedding attack brings back on the shipped testbed, pruned and not, always beside its controls.

    python benchmarks/attack.py [--pictures 12] [--seeds 2] [--only TEXT]

Writes docs/results/attack.{json,md,svg,png}. Every setting is a run of `unmemorize attack` in runs/attack-results,
which continues where it was stopped. A setting that is in the JSON already, for the same model and seeds, is not
measured again; settings that have not been run yet are missing on the page.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from common import OUT, kept, often, planted, show, table, write
from matplotlib.figure import Figure

from unmemorize.core.results import Interval
from unmemorize.core.run import atomic
from unmemorize.core.specs import AttackSpec, LocateSpec
from unmemorize.jobs.attack import run_attack
from unmemorize.jobs.locate import locate
from unmemorize.models.load import load
from unmemorize.report.attack import draw_copies
from unmemorize.report.drawing import STYLE

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


def settings(pictures: int, refined: bool) -> list[Setting]:
    """In the order of what is most wanted."""
    edits = ["none", "Wanda 40%", "Wanda 10%", "Wanda 1%", *(["NeMo, refined"] if refined else [])]
    prompt, random = ([Setting(edit, init, 50, pictures) for edit in edits] for init in ("prompt", "random"))
    return [*prompt, Setting("none", "prompt", 500, min(pictures, 6)), *random]


def edit_file(name: str) -> str:
    """The edit that a pruner finds with the memorized prompts, searched once."""
    if name == "none":
        return ""
    prompts = RUNS / "prompts.txt"
    with atomic(prompts) as temporary:
        temporary.write_text("".join(p.text + "\n" for p in planted(often)), encoding="utf-8")
    path = RUNS / "edits" / f"{name.lower().replace('%', '').replace(' ', '-')}.safetensors"
    if not path.exists():
        locate(LocateSpec(method=EDITS[name], prompts=str(prompts)), path)
    return str(path)


def run(setting: Setting, seeds: int) -> dict:
    """One setting's summary, with the seconds that this call took."""
    since = time.perf_counter()
    spec = AttackSpec(
        mitigation=edit_file(setting.edit),
        init=setting.init,  # type: ignore[arg-type]
        updates=setting.steps,
        limit=setting.pictures,
        pictures=seeds,
    )
    summary = run_attack(spec, RUNS / setting.name, lambda _, done, total: print(setting.name, done, total, flush=True))
    print(f"{setting.name}: {time.perf_counter() - since:.0f} s: {summary['sentence']}", flush=True)
    return {"edit": setting.edit, "init": setting.init, "run": setting.name} | summary


def at(row: dict, group: str, steps: int) -> dict:
    """A group's numbers after so many updates."""
    return next(point for point in row["curve"][group] if point["steps"] == steps)


def rate(row: dict | None) -> str:
    return show(Interval(**row) if row else None, 2)


def before_and_after(rows: list[dict]) -> list[str]:
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
                rate(row["original"]["attacked"]),
                rate(after["copies"]),
                f"{before['similarity']:.2f} → {after['similarity']:.2f}",
                rate(row["original"]["control"]),
                rate(at(row, "control", 50)["copies"]),
                rate(at(row, "unseen", 50)["copies"]),
                f"{after['relative']:.2f}",
                " → ".join(known),
            ]
        )
    columns = "mitigation | start | pictures | own prompts | after 50 updates | similarity | control, own prompts"
    columns += " | control, attacked | never trained on, attacked | moved / start | published"
    return table(columns.split(" | "), lines)


def curves(rows: list[dict]) -> list[str]:
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


def costs(rows: list[dict]) -> list[str]:
    """Search budget, what comes back within it of all three groups, and work to extract."""
    lines = []
    for row in rows:
        work = row["work"]["attacked"]
        median = "–" if work["median"] is None else f"{work['median']:.0f}"
        budget = "none" if row["search_budget"] is None else str(row["search_budget"])
        back = [rate(row["extracted"][group]) for group in ("attacked", "control", "unseen")]
        lines.append([row["edit"], row["init"], str(row["steps"]), budget, *back, median, str(work["never"])])
    columns = "mitigation | start | updates | search budget | extracted within | control | never trained on"
    return table([*columns.split(" | "), "evaluations to the first copy", "never copied"], lines)


def figure(rows: list[dict]) -> None:
    """Copy rate by number of updates, a panel a mitigation, from the prompt."""
    shown = [row for row in rows if row["init"] == "prompt" and row["steps"] == 50]
    with matplotlib.rc_context(STYLE | {"figure.facecolor": "white"}):
        canvas = Figure(figsize=(3.4 * len(shown), 3.2), layout="constrained")
        for axes, row in zip(canvas.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
            draw_copies(axes, row["curve"])
            axes.set_title(row["edit"])
        with atomic(OUT / "attack.svg") as temporary:
            canvas.savefig(temporary, format="svg", metadata={"Date": None})
    sheet = RUNS / shown[-1]["run"] / "sheet.png"
    if sheet.exists():
        with atomic(OUT / "attack.png") as temporary:
            shutil.copy(sheet, temporary)


def page(rows: list[dict], seeds: int) -> Iterator[str]:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", default="", help="run settings whose name contains this; the page shows all done")
    parser.add_argument("--refined", action="store_true", help="also NeMo with refinement, a search of ten minutes")
    options = parser.parse_args()
    results = kept("attack", {"fingerprint": load("testbed").fingerprint, "seeds": options.seeds})
    for setting in settings(options.pictures, options.refined):
        if options.only in setting.name and setting.name not in results["settings"]:
            results["settings"][setting.name] = run(setting, options.seeds)
            rows = list(results["settings"].values())
            write("attack", results, list(page(rows, options.seeds)))
            figure(rows)


if __name__ == "__main__":
    main()
