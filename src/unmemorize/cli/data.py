"""`unmemorize data`: audit a training set before training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from unmemorize.cli.app import DATA, Json, Run, command
from unmemorize.cli.checks import part_named
from unmemorize.cli.crew import Launcher, Portion, Workers, crew_of
from unmemorize.cli.terminal import add_row, next_step, out, print_json, say, working
from unmemorize.core.files import real_path
from unmemorize.core.specs import DataSpec

SHOWN = 20


@command(
    DATA, "unmemorize data path/to/training-set", "unmemorize data captions.parquet --run runs/data --out keep.parquet"
)
def data(
    spec: DataSpec,
    *,
    run: Run = "",
    part: Portion = "",
    workers: Workers = 1,
    launcher: Launcher = "local",
    json: Json = False,
) -> None:
    """Find duplicates and trigger words in a training set, before training."""
    portion = part_named(part)
    folder = Path(run or Path("runs") / f"data-{real_path(Path(spec.source)).stem}")

    from unmemorize.stages.data import audit_data

    with working(folder) as progress, crew_of(workers, launcher, portion) as crew:
        summary = audit_data(spec, folder, progress, crew)
    if json:
        print_json(summary | {"run": str(folder)})
        return
    _print(summary)
    say(f"report: {folder / 'report.html'}")
    next_step("audit", "MODEL", "--prompts", spec.out or str(folder / "keep.parquet"), "--references", spec.source)


def _print(summary: dict[str, Any]) -> None:
    table = Table("word", "kind", "captions", "groups", "concentration", "lift", "p")
    for t in summary["triggers"][:SHOWN]:
        numbers = (f"{t['concentration']:.0%}", f"{t['lift']:.3g}", f"{t['p_value']:.2g}")
        add_row(table, t["word"], t["kind"], t["captions"], t["image_groups"], *numbers)
    if summary["triggers"]:
        out.print(table)
    left = len(summary["triggers"]) - SHOWN
    say(
        f"{summary['rows']:,} rows, {summary['skipped']:,} skipped; {summary['duplicate_groups']:,} groups of "
        f"duplicate pictures; {len(summary['triggers']):,} triggers{f' ({left:,} not shown)' if left > 0 else ''}; "
        f"{summary['drop']:,} rows to drop, {summary['recaption']:,} to caption anew"
    )
    near = summary["near_duplicates"]
    if near["recall"]:
        recall = ", ".join(f"{name} {share:.0%}" for name, share in near["recall"].items())
        say(f"near-duplicates: {near['rule']}; of {near['copies_planted']} altered copies it finds: {recall}")
    for name, count in summary["captions_from"].items():
        say(f"captions: {count:,} from {name}")
    for reason, count in summary["skipped_by_reason"].items():
        say(f"skipped: {count:,} × {reason}")
