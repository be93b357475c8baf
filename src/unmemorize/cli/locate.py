"""`unmemorize locate` and `unmemorize apply`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from unmemorize.cli.app import Column, Json, Model, Ordinary, Prompts, app, bars
from unmemorize.cli.terminal import add_row, out, print_json, say
from unmemorize.core.outputs import Output, check_outputs
from unmemorize.core.specs import LocateSpec


@app.command()
def locate(
    model: Model = "testbed",
    method: Annotated[Literal["nemo", "wanda"], typer.Option(help="How to look.")] = "nemo",
    prompts: Prompts = "",
    column: Column = "",
    edit: Annotated[str, typer.Option("--out", help="Where to write the edit: NAME.safetensors.")] = "edit.safetensors",
    ordinary: Ordinary = "",
    layers: Annotated[
        Literal["down-mid", "all"], typer.Option(help="NeMo: as the paper, or every cross-attention.")
    ] = "down-mid",
    threshold: Annotated[float | None, typer.Option(help="NeMo: SSIM that counts as memorized; calibrated.")] = None,
    min_theta: Annotated[float, typer.Option(help="NeMo: smallest z-score of an unusual channel.")] = 1.0,
    refine: Annotated[bool, typer.Option(help="NeMo: free what the channels do without.")] = True,
    rule: Annotated[
        Literal["published", "ordinary"],
        typer.Option(help="NeMo: hidden by the paper's threshold, or as ordinary prompts."),
    ] = "published",
    sparsity: Annotated[float, typer.Option(help="Wanda: share of each weight row.")] = 0.01,
    per_prompt: Annotated[bool, typer.Option("--per-prompt", help="Wanda: choose prompt by prompt.")] = False,
    cache: Annotated[str, typer.Option(help="Folder for statistics; the user's cache folder by default.")] = "",
    as_json: Json = False,
) -> None:
    """Find the channels (NeMo) or weights (Wanda) that hold memorized pictures, and save their removal as an edit."""
    files = [Output("--out", path, "file") for path in (Path(edit), Path(edit).with_suffix(".json"))]
    folders = [Output("--cache", Path(cache), "folder")] if cache else []
    check_outputs([*files, *folders], [model, prompts, ordinary])

    # Imported here so that --help and mistakes in options answer at once.
    from unmemorize.jobs.locate import locate as run_locate

    spec = LocateSpec(
        model=model,
        method=method,
        prompts=prompts,
        column=column,
        ordinary=ordinary,
        layers=layers,
        threshold=threshold,
        min_theta=min_theta,
        refine=refine,
        rule=rule,
        sparsity=sparsity,
        per_prompt=per_prompt,
        cache=cache,
    )
    with bars() as progress:
        found, _ = run_locate(spec, Path(edit), progress)
    if as_json:
        keys = ("method", "units", "selected", "per_layer", "evaluations")
        print_json({key: getattr(found, key) for key in keys})
        return
    table = Table("layer", found.units)
    for name, count in found.per_layer.items():
        add_row(table, name, count)
    if found.selected:
        out.print(table)
    else:
        say("none of the prompts is memorized: the edit is empty")
    say(f"{found.selected} {found.units}, {found.evaluations} denoiser evaluations")
    say(f"edit: {edit}")


@app.command()
def apply(
    model: Model,
    edit: Annotated[str, typer.Argument(help="An edit: NAME.safetensors, with its .json beside it.")],
    folder: Annotated[str, typer.Option("--out", help="A new folder for the edited pipeline.")],
    force: Annotated[bool, typer.Option("--force", help="Also if the edit was made for another model.")] = False,
) -> None:
    """Write a model with an edit applied, as a folder that from_pretrained loads."""
    check_outputs([Output("--out", Path(folder), "new")], [model, edit])

    from unmemorize.jobs.locate import apply_edit

    apply_edit(model, Path(edit), Path(folder), force=force)
    say(folder)
