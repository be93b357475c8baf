"""`unmemorize detect`."""

from __future__ import annotations

import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from unmemorize.cli.app import Column, Guidance, Json, Model, Prompts, Steps, Window, app, bars
from unmemorize.cli.terminal import add_row, out, print_json, say
from unmemorize.core.outputs import Output, check_outputs
from unmemorize.core.specs import DetectSpec


class Format(StrEnum):
    """What `detect` prints."""

    table = "table"
    json = "json"
    wen_jsonl = "wen-jsonl"


@app.command()
def detect(
    model: Model = "testbed",
    prompts: Prompts = "",
    column: Column = "",
    method: Annotated[str, typer.Option(help="Detector.")] = "noise-gap",
    seeds: Annotated[int, typer.Option(min=1, help="Seeds per prompt.")] = 4,
    window: Window = "1",
    steps: Steps = 0,
    guidance: Guidance = None,
    run: Annotated[str, typer.Option(help="Run directory for the scores, where a killed run continues.")] = "",
    top: Annotated[int, typer.Option(min=1, help="Rows of the table.")] = 25,
    as_format: Annotated[Format, typer.Option("--format", help="What to print.")] = Format.table,
    as_json: Json = False,
) -> None:
    """Rank prompts by how memorized they look."""
    check_outputs([Output("--run", Path(run), "run")] if run else [], [model, prompts])

    from unmemorize.jobs.detect import detect as run_detect
    from unmemorize.jobs.detect import wen_lines

    spec = DetectSpec(
        model=model,
        prompts=prompts,
        column=column,
        method=method,
        seeds=seeds,
        window=window,
        steps=steps,
        guidance=guidance,
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(run or scratch)
        with bars() as progress:
            rows = run_detect(spec, folder, progress)
        lines = wen_lines(folder) if as_format is Format.wen_jsonl else []
    if lines:
        print("\n".join(lines))
    elif as_json or as_format is Format.json:
        print_json(rows)
    else:
        _print_table(rows, top, run)


def _print_table(rows: list[dict[str, Any]], top: int, run: str) -> None:
    table = Table("rank", "score", "prompt", box=None, pad_edge=False)
    for rank, row in enumerate(rows[:top], 1):
        add_row(table, rank, f"{row['score']:.3f}", row["prompt"])
    out.print(table)
    cost = sum(row["evaluations"] for row in rows)
    rest = f", {len(rows) - top} more not shown" if len(rows) > top else ""
    say(f"{len(rows)} prompts, {cost} denoiser evaluations{rest}")
    if run:
        say(f"scores: {Path(run) / 'scores' / 'detect.parquet'}")
