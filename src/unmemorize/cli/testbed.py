"""`unmemorize testbed`: the embedded models with planted memories."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from unmemorize.cli.app import Json, app
from unmemorize.cli.terminal import add_row, out, print_json, say
from unmemorize.core.outputs import Output, check_outputs

testbed_app = typer.Typer(help="The embedded models with planted memories.", no_args_is_help=True)
app.add_typer(testbed_app, name="testbed")


@testbed_app.command()
def describe(as_json: Json = False) -> None:
    """Show what is planted."""
    from unmemorize.testbed.embedded import describe as describe_plan

    rows = describe_plan()
    if as_json:
        print_json(rows)
        return
    table = Table("kind", "copies", "entries", "prompts", "training rows", "what it is")
    for row in rows:
        add_row(table, *row.values())
    out.print(table)


@testbed_app.command()
def export(folder: Annotated[str, typer.Argument(help="A new folder.")]) -> None:
    """Copy the models, the plan and the planted pictures to a folder."""
    check_outputs([Output("FOLDER", Path(folder), "new")])

    from unmemorize.testbed.embedded import export as export_testbed

    export_testbed(Path(folder))
    say(folder)


@testbed_app.command()
def train(
    folder: Annotated[str, typer.Argument(help="Folder for the trained pipeline.")],
    data: Annotated[str, typer.Option(help="Folder for artwork and checkpoints.")] = "testbed-data",
    twin: Annotated[bool, typer.Option("--twin", help="Train the twin, without the duplicates.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the run.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Train the planted model, or its twin, from the artwork. A killed run continues where it was."""
    check_outputs([Output("FOLDER", Path(folder), "folder"), Output("--data", Path(data), "folder")])

    from unmemorize.testbed.recipe import Recipe
    from unmemorize.testbed.train import train as train_testbed

    train_testbed(Path(data), Path(folder), Recipe(seed=seed), duplicates=not twin, device=device)
    say(folder)
