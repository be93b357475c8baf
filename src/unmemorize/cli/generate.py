"""`unmemorize generate`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from unmemorize.cli.app import Guidance, Json, Model, Ordinary, Pictures, Steps, app
from unmemorize.cli.terminal import add_row, out, print_json
from unmemorize.core.outputs import Output, check_outputs
from unmemorize.core.specs import GenerateSpec


class GuardName(StrEnum):
    """Mitigations at inference."""

    wen = "wen"


@app.command()
def generate(
    model: Model,
    prompt: Annotated[str, typer.Argument(help="The prompt.")],
    folder: Annotated[str, typer.Option("--out", help="A new folder for the pictures.")] = "pictures",
    guard: Annotated[GuardName | None, typer.Option(help="Act on memorized prompts.")] = None,
    pictures: Pictures = 4,
    steps: Steps = 0,
    guidance: Guidance = None,
    ordinary: Ordinary = "",
    threshold: Annotated[float | None, typer.Option(min=0, help="Magnitude above which the guard acts.")] = None,
    target: Annotated[float | None, typer.Option(min=0, help="Magnitude it brings a picture under.")] = None,
    as_json: Json = False,
) -> None:
    """Make pictures of a prompt, with a guard against memorized ones if asked."""
    check_outputs([Output("--out", Path(folder), "new")], [model, ordinary])

    from unmemorize.jobs.generate import generate as run_generate

    spec = GenerateSpec(
        model=model,
        prompt=prompt,
        pictures=pictures,
        steps=steps,
        guidance=guidance,
        guard=guard.value if guard else "",
        ordinary=ordinary,
        threshold=threshold,
        target=target,
    )
    rows = run_generate(spec, Path(folder))
    if as_json:
        print_json(rows)
        return
    table = Table(*rows[0], box=None, pad_edge=False)
    for row in rows:
        add_row(table, *(f"{v:.3f}" if isinstance(v, float) else v for v in row.values()))
    out.print(table, highlight=False)
