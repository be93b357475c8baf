"""`unmemorize reproduce`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from rich.table import Table

from unmemorize.cli.app import TESTBED, Json, command, option
from unmemorize.cli.terminal import add_row, out, print_json, say


@command(TESTBED, "unmemorize reproduce", "unmemorize reproduce runs/reproduce --json")
def reproduce(
    runs: Annotated[str, option("Folder that holds the runs of these commands.")] = "runs/reproduce",
    *,
    json: Json = False,
) -> None:
    """Print published tables: the command that gives each, the numbers expected, and those of your runs beside them."""
    from unmemorize.report.reproduce import reproductions

    tables = reproductions(Path(runs))
    if json:
        print_json({"tables": tables})
        return
    for table in tables:
        say(f"{table['name']}: {table['paper']}; {table['model']}")
        say(f"  needs {table['data']}")
        say(f"  {table['command']}")
        rows = Table("number", "published", "expected", "ours", "source", box=None, pad_edge=False)
        for row in table["numbers"]:
            ours = "not run" if row["ours"] is None else f"{row['ours']:.3f}"
            expected = f"{row['low']:.3g} to {row['high']:.3g}"
            add_row(rows, row["what"], f"{row['published']:.3g}", expected, ours, row["source"])
        out.print(rows, "")
