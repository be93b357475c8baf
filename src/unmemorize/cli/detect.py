"""`unmemorize detect`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from rich.table import Table

from unmemorize.cli.app import FIND, DryRun, Json, Run, command, option
from unmemorize.cli.checks import check, part_named
from unmemorize.cli.crew import Launcher, Portion, Workers, crew_of
from unmemorize.cli.terminal import add_row, next_step, out, print_json, say, show_expected, working
from unmemorize.core.bounds import Count
from unmemorize.core.errors import UserError
from unmemorize.core.outputs import Output
from unmemorize.core.run import on_disk
from unmemorize.core.specs import DetectSpec

if TYPE_CHECKING:
    from unmemorize.stages.detect import Ranked


@command(
    FIND,
    "unmemorize detect MODEL --prompts captions.csv",
    "unmemorize detect MODEL --prompts captions.csv --method max-z --method noise-gap --run runs/scores",
)
def detect(
    spec: DetectSpec,
    *,
    run: Run = "",
    part: Portion = "",
    workers: Workers = 1,
    launcher: Launcher = "local",
    top: Annotated[Count, option("Rows of the table.")] = 25,
    format: Annotated[
        Literal["table", "wen-jsonl"], option("A table, or the JSON lines of the public code of Wen et al. 2024.")
    ] = "table",
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Rank prompts by how memorized they look."""
    if part and not run:
        raise UserError(f"--part {part}: parts meet in a run directory: name one with --run")
    if launcher != "local" and not run:
        raise UserError(f"--launcher {launcher}: workers meet in a run directory: name one with --run")
    portion = part_named(part)
    kept = on_disk(Path(run)) if run and not dry_run else None
    check(spec, *([Output("--run", kept, "run")] if kept else []))

    if dry_run:
        from unmemorize.stages.forecast import forecast_detect

        show_expected(forecast_detect(spec), json)
        return

    from unmemorize.stages.detect import detect as run_detect
    from unmemorize.stages.detect import wen_lines

    with tempfile.TemporaryDirectory() as scratch:
        folder = kept or Path(scratch)
        with working(kept) as progress, crew_of(workers, launcher, portion) as crew:
            rows = run_detect(spec, folder, progress, crew)
        lines = wen_lines(folder) if format == "wen-jsonl" else []
    if lines:
        print("\n".join(lines))
    elif json:
        print_json({"prompts": list(rows)})
    else:
        _print_table(rows, top, kept)
        next_step("explain", spec.model, rows[0]["prompt"])


def _print_table(rows: Ranked, top: int, run: Path | None) -> None:
    names = list(rows[0]["methods"])
    table = Table("rank", *(["score"] if len(names) == 1 else names), "prompt", box=None, pad_edge=False)
    for rank, row in enumerate(rows[:top], 1):
        add_row(table, rank, *(f"{row['methods'][name]['score']:.3f}" for name in names), row["prompt"])
    out.print(table)
    costs = rows.costs
    not_shown = f", {len(rows) - top} more not shown" if len(rows) > top else ""
    say(f"{len(rows)} prompts, {sum(costs.values())} denoiser evaluations{not_shown}")
    if len(names) > 1:
        each = ", ".join(f"{name} {cost}" for name, cost in costs.items())
        say(f"evaluations: {each}; what an earlier method read costs a later one nothing")
    if run:
        say(f"scores: {run / 'scores' / 'detect.parquet'}")
