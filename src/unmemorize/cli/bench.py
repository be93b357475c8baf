"""`unmemorize bench`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Column, Table

from unmemorize.cli.app import FIND, DryRun, Json, Run, command
from unmemorize.cli.checks import check
from unmemorize.cli.terminal import add_row, next_step, out, print_json, say, show_expected, working
from unmemorize.core.outputs import Output
from unmemorize.core.run import default_run
from unmemorize.core.shards import Row
from unmemorize.core.specs import BenchSpec

if TYPE_CHECKING:
    from unmemorize.report.bench import Contest


@command(
    FIND,
    "unmemorize bench MODEL --labels labelled.csv --run runs/ranking",
    "unmemorize bench testbed --kind mitigation --method guard --method static-transition",
)
def bench(spec: BenchSpec, *, run: Run = "", dry_run: DryRun = False, json: Json = False) -> None:
    """Rank detectors on prompts of which it is known whether they are memorized, or mitigations on copied pictures."""
    folder = default_run(run, spec.model, "bench")
    check(spec, *([] if dry_run else [Output("--run", folder, "run")]))

    if dry_run:
        from unmemorize.audit.forecast import forecast_bench

        show_expected(forecast_bench(spec), json)
        return

    from unmemorize.audit.bench import run_bench, summarised
    from unmemorize.report.bench import contests_of, rankings_of

    with working(folder) as progress:
        rows = run_bench(spec, folder, progress)
    if json:
        print_json(summarised(rows))
        return
    if spec.kind == "mitigation":
        contests = contests_of(rows)
        for contest in contests:
            _print_contest(contest)
            _say_not_applicable(contest.not_applicable)
        # The best is still to be attacked, which an audit does.
        best = [row["method"] for row in contests[0].methods[1:2]]
        after = ["audit", spec.model, "--mitigation", *best] if best else ["methods"]
    else:
        after = ["methods", rows[0]["method"].partition(":")[0]]
        for ranking in rankings_of(rows):
            _print_table(ranking.model, ranking.methods)
            _say_not_applicable(ranking.not_applicable)
    say(f"page: {folder / 'report.html'}; table: {folder / 'table.tex'}")
    next_step(*after)


def _print_table(model: str, rows: Sequence[Row]) -> None:
    say(f"{model}: {rows[0]['memorized']} memorized prompts, {rows[0]['ordinary']} ordinary ones")
    columns = ("AUC", "TPR at 1%", "behind the best", "evaluations", "time")
    table = Table(Column("method", overflow="fold"), *columns, box=None, pad_edge=False)
    for row in rows:
        cells = [_limits(row, "auc"), f"{row['tpr']:.3f}", _limits(row, "behind")]
        time = "–" if row["ratio"] is None else f"{row['ratio']:.2f}"
        add_row(table, row["method"], *cells, f"{row['evaluations']:.1f}", time)
    out.print(table)


def _print_contest(contest: Contest) -> None:
    rows = contest.methods
    say(f"{contest.model}: {rows[0]['pictures']} copied pictures, {rows[0]['ordinary']} ordinary prompts")
    columns = ["copies", "ordinary changed", "likeness", "alignment", "evaluations"]
    columns += ["attacked", "its control"] if contest.attacked else []
    table = Table(Column("mitigation", overflow="fold"), *columns, box=None, pad_edge=False)
    for row in rows:
        alignment = "–" if row["alignment"] is None else f"{row['alignment']:+.1%}"
        cells = [_limits(row, "copies"), f"{row['changed']:.2f}", f"{row['likeness']:.2f}", alignment]
        cells.append(f"{row['evaluations']:.0f}")
        if contest.attacked:
            cells += [_limits(row, name) for name in ("attacked", "control")]
        add_row(table, row["method"], *cells)
    out.print(table)


def _say_not_applicable(rows: Sequence[Row]) -> None:
    for row in rows:
        say(f"{row['method']}: not applicable: {row['reason']}")


def _limits(row: Row, name: str) -> str:
    if row[name] is None:
        return "–"
    if row[f"{name}_low"] is None:
        return f"{row[name]:.3f}"
    return f"{row[name]:.3f} [{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}]"
