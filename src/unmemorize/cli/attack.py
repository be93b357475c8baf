"""`unmemorize attack`: does the picture come back?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from unmemorize.cli.app import (
    Controls,
    Guidance,
    Json,
    Model,
    Ordinary,
    Pictures,
    Recipe,
    References,
    Sscd,
    Steps,
    Targets,
    app,
    bars,
)
from unmemorize.cli.terminal import add_row, out, print_json, say
from unmemorize.core.outputs import Output, check_outputs
from unmemorize.core.specs import AttackSpec

KEYS = ("copy_rate", "original_copy_rate", "control_copy_rate", "search_budget", "evaluations", "steps")
GROUPS = {"attacked": "attacked", "control": "trained on, not memorized", "unseen": "never trained on"}


@app.command()
def attack(
    model: Model = "testbed",
    targets: Targets = "",
    method: Annotated[str, typer.Option(help="dori, high-noise, from-noise or adaptive.")] = "dori",
    edit: Annotated[str, typer.Option(help="An edit to attack the model under: NAME.safetensors.")] = "",
    init: Annotated[
        Literal["prompt", "random", "ordinary"], typer.Option(help="Start from its prompt, N(0, I), or another prompt.")
    ] = "prompt",
    updates: Annotated[int | None, typer.Option(min=1, help="Updates; the method's own by default.")] = None,
    restarts: Annotated[int, typer.Option(min=1, help="Attacks of each picture.")] = 1,
    lr: Annotated[float | None, typer.Option(help="Learning rate; the method's own by default.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Noisy versions of a picture in an update.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="How many of the pictures, evenly spread; 0 for all.")] = 0,
    controls: Controls = "",
    held_out: Annotated[str, typer.Option(help="Folder of pictures never trained on; made from the controls.")] = "",
    ordinary: Ordinary = "",
    references: References = "",
    pictures: Pictures = 4,
    steps: Steps = 0,
    guidance: Guidance = None,
    bound: Annotated[float, typer.Option(min=0, max=1, help="Share of a control that may come back.")] = 0.05,
    sscd: Sscd = "",
    recipe: Recipe = "sscd-320",
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16; by the device where empty.")] = "",
    checkpointing: Annotated[bool, typer.Option("--checkpointing", help="Less memory, more time.")] = False,
    run: Annotated[str, typer.Option(help="Run directory, where a killed attack continues.")] = "",
    as_json: Json = False,
) -> None:
    """Search for embeddings that bring training pictures back, under an edit or without, always beside controls."""
    folder = Path(run or Path("runs") / f"attack-{Path(model).name}")
    read = [model, targets, references, edit, controls, held_out, ordinary, sscd]
    check_outputs([Output("--run", folder, "run")], read)

    from unmemorize.jobs.attack import run_attack

    spec = AttackSpec(
        model=model,
        targets=targets,
        references=references,
        method=method,
        edit=edit,
        init=init,
        updates=updates,
        restarts=restarts,
        lr=lr,
        batch=batch,
        limit=limit,
        controls=controls,
        held_out=held_out,
        ordinary=ordinary,
        pictures=pictures,
        steps=steps,
        guidance=guidance,
        bound=bound,
        sscd=sscd,
        recipe=recipe,
        dtype=dtype,
        checkpointing=checkpointing,
    )
    with bars() as progress:
        summary = run_attack(spec, folder, progress)
    if as_json:
        print_json({key: summary[key] for key in KEYS})
        return
    _print(summary)
    say(f"embeddings, pictures and numbers: {folder}")


def _print(summary: dict[str, Any]) -> None:
    table = Table("updates", *(f"{label}: copy rate" for label in GROUPS.values()), "similarity", "moved / start")
    for rows in zip(*(summary["curve"][group] for group in GROUPS), strict=True):
        similar, moved = ([f"{row[key]:.2f}" for row in rows] for key in ("similarity", "relative"))
        rates = [_rate(row["copies"]) for row in rows]
        add_row(table, rows[0]["steps"], *rates, " / ".join(similar), " / ".join(moved))
    out.print(table)
    for group, label in GROUPS.items():
        original, work = summary["original"][group], summary["work"][group]
        median = "–" if work["median"] is None else f"{work['median']:,.0f}"
        say(
            f"{label}: {summary['pictures'][group]} pictures, own prompts copy {_rate(original)}; "
            f"evaluations to the first copy {median} (median), never copied {work['never']}"
        )
    say(f"never trained on: {summary['unseen_from']}")
    say(summary["sentence"])


def _rate(rate: dict[str, Any] | None) -> str:
    return "–" if rate is None else f"{rate['value']:.2f} [{rate['low']:.2f}, {rate['high']:.2f}]"
