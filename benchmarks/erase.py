"""Fine-tuning memorized pictures out of the testbed: what an attack still finds, what it costs, what quality is left.

    python benchmarks/erase.py [--only NAME]

Writes docs/results/erase.{json,md}. Each method is a run of `unmemorize mitigate` in runs/erase, which continues where
it was killed; `torchrun --nproc_per_node 2 benchmarks/erase.py` takes two processes. A method that is in the JSON
already, for the same model and settings, is not run again; without its folder the attacks of other benchmarks on it
are left out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from common import kept, show, table, write
from tqdm import tqdm

from unmemorize.core.results import Interval
from unmemorize.core.specs import MitigateSpec
from unmemorize.jobs.mitigate import mitigate
from unmemorize.models.load import load

RUNS = Path("runs/erase")
METHODS = {
    "erase": "erase:check_every=0",
    "erase, seed 1": "erase:check_every=0,seed=1",
    "erase, seed 2": "erase:check_every=0,seed=2",
    # Half as many evaluations as erase.
    "adversarial fine-tuning": "adversarial-finetune:check_every=0,updates=48",
    "adversarial fine-tuning, LoRA": "adversarial-finetune:check_every=0,updates=24,lora=8,lr=0.001",
    "fine-tuning, no adversary": "finetune",
    "SISS": "siss",
    "NegGrad": "neggrad",
    "naive deletion": "deletion",
}
SPECS = {name: MitigateSpec(method=method, pictures=4) for name, method in METHODS.items()}


def measured(name: str) -> dict[str, Any]:
    """The numbers of a method's run, which is made or continued first."""
    run = folder(name)
    if not (run / "run" / "results.json").exists():
        with tqdm(desc=name) as bar:
            mitigate(SPECS[name], run / "model", run / "run", lambda stage, done, total: _show(bar, stage, done, total))
    return json.loads((run / "run" / "results.json").read_text(encoding="utf-8"))


def folder(name: str) -> Path:
    """Where a method's run and model are."""
    return RUNS / name.replace(",", "").replace(" ", "-")


def _show(bar: tqdm, stage: str, done: int, total: int) -> None:
    bar.set_postfix_str(f"{stage} {done}/{total}")


def page(found: dict[str, dict[str, Any]]) -> list[str]:
    """The numbers as a page."""
    first = next(iter(found.values()))
    lines = [
        f"{first['pictures']} pictures that were planted a hundred times or more, four seeds each; before, "
        f"{show(Interval(*first['copy_rate_before']), 2)} are copies. The attack is plain DoRI: 50 updates of batch 8, "
        "with seeds and starts that no training saw. Alignment is the relative change on ordinary captions that no "
        "training saw, and on the quarter of them nearest to memorized ones. Seconds are those of the "
        "updates, on one core.",
        "",
    ]
    return [*lines, *summary(found), "", *_spread(found)]


def summary(found: dict[str, dict[str, Any]]) -> list[str]:
    """A table with a row a mitigation."""
    rows = [[name, *cells(row).values()] for name, row in found.items()]
    return table(["mitigation", *cells(next(iter(found.values())))], rows)


def cells(row: dict[str, Any]) -> dict[str, str]:
    """What a mitigation left, what it changed and what it cost; a dash where nothing was measured."""

    def change(group: str) -> str:
        if not row["quality"]:
            return "–"
        value, low, high = row["quality"][group]["alignment"]["change"]
        return f"{value:+.1%} [{low:+.1%}, {high:+.1%}]"

    fid = row["quality"]["ordinary"]["fid"] if row["quality"] else None
    return {
        "own prompts": show(Interval(*row["copy_rate_after"]), 2),
        "DoRI, from the prompt": show(Interval(*row["attacked"]["prompt"]), 2),
        "DoRI, from N(0, I)": show(Interval(*row["attacked"]["random"]), 2),
        "alignment": change("ordinary"),
        "neighbours' alignment": change("neighbours"),
        "FID": f"{fid['before'][0]:.3f} → {fid['after'][0]:.3f}" if fid else "–",
        "evaluations": f"{row['evaluations']:,}",
        "seconds": f"{row['seconds']:,}",
    }


def _spread(found: dict[str, dict[str, Any]]) -> list[str]:
    """What differs between training seeds of erase."""
    runs = [row for name, row in found.items() if name.startswith("erase")]
    if len(runs) < 2:
        return []
    values = {
        "own prompts": [row["copy_rate_after"][0] for row in runs],
        "attacked, from the prompt": [row["attacked"]["prompt"][0] for row in runs],
        "attacked, from N(0, I)": [row["attacked"]["random"][0] for row in runs],
    }
    for group in ("ordinary", "neighbours"):
        changes = [row["quality"][group]["alignment"]["change"][0] for row in runs]
        values[f"alignment, {group} (change in %)"] = [100 * change for change in changes]
    rows = [[name, f"{mean(v):.2f}", f"{stdev(v):.2f}", f"{min(v):.2f}", f"{max(v):.2f}"] for name, v in values.items()]
    head = [f"erase, {len(runs)} training seeds", "mean", "standard deviation", "least", "most"]
    return table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="measure methods whose name contains this; the page shows all done")
    options = parser.parse_args()
    results = kept("erase", {"fingerprint": load("testbed").fingerprint})
    for name, spec in SPECS.items():
        known = results["settings"].get(name)
        if options.only in name and (known is None or known["unlearner"] != spec.method):
            results["settings"][name] = {"unlearner": spec.method} | measured(name)
            write("erase", results, page(results["settings"]))


if __name__ == "__main__":
    main()
