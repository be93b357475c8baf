"""`unmemorize data`: audit a training set before training."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Annotated, Any

from rich.table import Table

from unmemorize.cli.app import DATA, Json, Run, command, option
from unmemorize.cli.checks import part_named
from unmemorize.cli.crew import Launcher, Portion, Workers, crew_of
from unmemorize.cli.terminal import add_row, next_step, out, print_json, say, working
from unmemorize.core.bounds import Count
from unmemorize.core.files import real_path
from unmemorize.core.run import on_disk
from unmemorize.core.specs import DataSpec

SHOWN = 20
LONGEST = 60  # characters of a caption


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
    folder = on_disk(Path(run or Path("runs") / f"data-{real_path(Path(spec.source)).stem}"))

    from unmemorize.stages.data import audit_data

    with working(folder) as progress, crew_of(workers, launcher, portion) as crew:
        summary = audit_data(spec, folder, progress, crew)
    if json:
        print_json(summary | {"run": str(folder)})
        return
    _print(summary)
    say(f"report: {folder / 'report.html'}")
    if summary["uncaptioned"] == summary["rows"]:
        return
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
        say(
            f"near-duplicates: {near['rule']}, of {near['compared']}; "
            f"of {near['copies_planted']} altered copies found: {recall}"
        )
    if against := summary["against"]:
        say(f"pictures of {against['rows']:,} rows are in {against['run']}, too ({against['rule']}): against.parquet")
    for name, count in summary["captions_from"].items():
        say(f"captions: {count:,} from {name}")
    if summary["uncaptioned"]:
        say(f"captions: none for {summary['uncaptioned']:,} pictures, of which only the pixels are compared")
    for reason, count in summary["skipped_by_reason"].items():
        say(f"skipped: {count:,} × {reason}")


@command(DATA, "unmemorize nearest runs/data picture.png", "unmemorize nearest runs/data picture.png --top 3 --json")
def nearest(
    run: Annotated[str, option("Run directory of a finished data audit.")],
    picture: Annotated[str, option("A picture.")],
    *,
    top: Annotated[Count, option("Rows of the table.")] = 10,
    sscd: Annotated[str, option("SSCD file of the audit, where it had one.")] = "",
    json: Json = False,
) -> None:
    """Show the rows of a data audit whose pictures are most like a picture."""
    from unmemorize.stages.data import nearest_rows

    found = nearest_rows(on_disk(Path(run)), Path(picture), top, sscd)
    if json:
        print_json(found)
        return
    by_network = any(match["sscd"] is not None for match in found["matches"])
    numbers = ("sscd", "cosine", "bits") if by_network else ("cosine", "bits")
    table = Table("id", *numbers, "same picture", "caption", box=None, pad_edge=False)
    for match in found["matches"]:
        same = "equal pixels" if match["equal"] else "near-duplicate" if match["near"] else ""
        caption = textwrap.shorten(match["caption"] or "", LONGEST, placeholder="…")
        cosines = ["–" if match[name] is None else f"{match[name]:.3f}" for name in numbers[:-1]]
        add_row(table, match["id"], *cosines, match["bits"], same, caption)
    out.print(table)
    say(f"{found['pictures']:,} pictures of {run}; near-duplicates by {found['rule']}")
