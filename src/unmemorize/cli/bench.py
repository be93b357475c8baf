"""`unmemorize bench`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from unmemorize.cli.app import FIND, Json, Run, command
from unmemorize.cli.checks import check
from unmemorize.cli.terminal import add_row, next_step, out, print_json, say, working
from unmemorize.core.outputs import Output
from unmemorize.core.run import default_run
from unmemorize.core.shards import Row
from unmemorize.core.specs import BenchSpec


@command(
    FIND,
    "unmemorize bench testbed testbed-twin --method noise-gap --method two-probe",
    "unmemorize bench MODEL --labels labelled.csv --run runs/ranking",
)
def bench(spec: BenchSpec, *, run: Run = "", json: Json = False) -> None:
    """Rank detectors on prompts of which it is known whether they are memorized."""
    folder = default_run(run, spec.model, "bench")
    check(spec, Output("--run", folder, "run"))

    from unmemorize.audit.bench import run_bench, summarised
    from unmemorize.report.bench import rankings_of

    with working(folder) as progress:
        rows = run_bench(spec, folder, progress)
    if json:
        print_json(summarised(rows))
        return
    for ranking in rankings_of(rows):
        _print_table(ranking.model, ranking.methods)
        for row in ranking.not_applicable:
            say(f"{row['method']}: not applicable: {row['reason']}")
    say(f"page: {folder / 'report.html'}; table: {folder / 'table.tex'}")
    next_step("methods", rows[0]["method"].partition(":")[0])


def _print_table(model: str, rows: Sequence[Row]) -> None:
    say(f"{model}: {rows[0]['memorized']} memorized prompts, {rows[0]['ordinary']} ordinary ones")
    table = Table("method", "AUC", "TPR at 1%", "behind the best", "evaluations", "time", box=None, pad_edge=False)
    for row in rows:
        cells = [_limits(row, "auc"), f"{row['tpr']:.3f}", _limits(row, "behind")]
        time = "–" if row["ratio"] is None else f"{row['ratio']:.2f}"
        add_row(table, row["method"], *cells, f"{row['evaluations']:.1f}", time)
    out.print(table)


def _limits(row: Row, name: str) -> str:
    if row[f"{name}_low"] is None:
        return f"{row[name]:.3f}"
    return f"{row[name]:.3f} [{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}]"
