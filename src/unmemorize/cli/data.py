"""`unmemorize data`: audit a training set before training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from unmemorize.cli.app import Column, Json, app, bars
from unmemorize.cli.app import out as terminal

SHOWN = 20


@app.command()
def data(
    source: Annotated[str, typer.Argument(help="Folder of pictures, Parquet, Hugging Face dataset folder, or tars.")],
    out: Annotated[str, typer.Option("--out", "--run", help="Run directory, where a killed audit continues.")] = "",
    export: Annotated[str, typer.Option(help="Parquet file for the rows to keep.")] = "",
    column: Column = "",
    as_json: Json = False,
) -> None:
    """Find duplicates and trigger words in a training set, before training."""
    from unmemorize.jobs.data import DataSpec, audit_data

    folder = Path(out or Path("runs") / f"data-{Path(source).resolve().stem}")
    with bars() as progress:
        summary = audit_data(DataSpec(source, column, export), folder, progress)
    if as_json:
        print(json.dumps(summary | {"run": str(folder)}, ensure_ascii=False))
        return
    _print(summary)
    terminal.print(f"report: {folder / 'report.html'}", highlight=False, markup=False)


def _print(summary: dict) -> None:
    table = Table("word", "kind", "captions", "groups", "concentration", "lift", "p")
    for t in summary["triggers"][:SHOWN]:
        numbers = (f"{t['concentration']:.0%}", f"{t['lift']:.3g}", f"{t['p_value']:.2g}")
        table.add_row(escape(t["word"]), t["kind"], str(t["captions"]), str(t["image_groups"]), *numbers)
    if summary["triggers"]:
        terminal.print(table)
    left = len(summary["triggers"]) - SHOWN
    terminal.print(
        f"{summary['rows']:,} rows, {summary['skipped']:,} skipped; {summary['duplicate_groups']:,} groups of "
        f"duplicate pictures; {len(summary['triggers']):,} triggers{f' ({left:,} not shown)' if left > 0 else ''}; "
        f"{summary['drop']:,} rows to drop, {summary['recaption']:,} to caption anew",
        highlight=False,
    )
    for reason, count in summary["skipped_by_reason"].items():
        terminal.print(f"skipped: {count:,} × {reason}", highlight=False, markup=False)
