"""`unmemorize data`: audit a training set before training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from unmemorize.cli.app import Column, Json, app, bars
from unmemorize.cli.terminal import add_row, print_json, say
from unmemorize.cli.terminal import out as terminal
from unmemorize.core.specs import DataSpec

SHOWN = 20


@app.command()
def data(
    source: Annotated[str, typer.Argument(help="Folder of pictures, Parquet, Hugging Face dataset folder, or tars.")],
    run: Annotated[str, typer.Option(help="Run directory, where a killed audit continues.")] = "",
    out: Annotated[str, typer.Option(help="Parquet file for the rows to keep.")] = "",
    column: Column = "",
    as_json: Json = False,
) -> None:
    """Find duplicates and trigger words in a training set, before training."""
    from unmemorize.jobs.data import audit_data

    folder = Path(run or Path("runs") / f"data-{Path(source).resolve().stem}")
    with bars() as progress:
        summary = audit_data(DataSpec(source=source, column=column, out=out), folder, progress)
    if as_json:
        print_json(summary | {"run": str(folder)})
        return
    _print(summary)
    say(f"report: {folder / 'report.html'}")


def _print(summary: dict[str, Any]) -> None:
    table = Table("word", "kind", "captions", "groups", "concentration", "lift", "p")
    for t in summary["triggers"][:SHOWN]:
        numbers = (f"{t['concentration']:.0%}", f"{t['lift']:.3g}", f"{t['p_value']:.2g}")
        add_row(table, t["word"], t["kind"], t["captions"], t["image_groups"], *numbers)
    if summary["triggers"]:
        terminal.print(table)
    left = len(summary["triggers"]) - SHOWN
    say(
        f"{summary['rows']:,} rows, {summary['skipped']:,} skipped; {summary['duplicate_groups']:,} groups of "
        f"duplicate pictures; {len(summary['triggers']):,} triggers{f' ({left:,} not shown)' if left > 0 else ''}; "
        f"{summary['drop']:,} rows to drop, {summary['recaption']:,} to caption anew"
    )
    for reason, count in summary["skipped_by_reason"].items():
        say(f"skipped: {count:,} × {reason}")
