"""`unmemorize testbed`: the embedded models with planted memories."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App
from rich.table import Table

from unmemorize.cli.app import TESTBED, Json, app, command, option
from unmemorize.cli.terminal import add_row, next_step, out, print_json, say
from unmemorize.core.bounds import Seed
from unmemorize.core.errors import UserError
from unmemorize.core.outputs import Output, check_outputs

testbed_app = App(name="testbed", help="The embedded models with planted memories.", group=TESTBED)
app.command(testbed_app)


@command(TESTBED, "unmemorize testbed describe", "unmemorize testbed describe --json", to=testbed_app)
def describe(*, json: Json = False) -> None:
    """Show what is planted: in the panel's branches, of which `testbed` is C, and in the other models."""
    from unmemorize.testbed.embedded import describe as describe_plan
    from unmemorize.testbed.embedded import describe_panel

    rows, panel = describe_plan(), describe_panel()
    if json:
        print_json({"panel": panel, "ladder": rows})
        return
    table = Table(
        "kind", "entries", "prompts", "doses", "what it is", title="testbed-a to -d, -flow-c, -flow-d, -words"
    )
    for row in panel:
        add_row(table, *row.values())
    out.print(table)
    say("testbed is testbed-c.")
    say("Every branch has each dose equally often, and every picture has another dose in each of them:")
    say("what is memorized in one is new to another. Choose settings on a and b, report on c and d.")
    say("testbed-words: nothing but triggers; flow: a transformer of Stable Diffusion 3's shape, on the same plan.")
    table = Table("kind", "copies", "entries", "prompts", "training rows", "what it is", title="testbed-ladder")
    for row in rows:
        add_row(table, *row.values())
    out.print(table)
    say("testbed-ladder: another training, with more doses; testbed-twin: its pictures, each once.")
    next_step("audit")


@command(TESTBED, "unmemorize testbed export exported", "unmemorize testbed export exported --json", to=testbed_app)
def export(folder: Annotated[str, option("A new folder.")], *, json: Json = False) -> None:
    """Copy the models, the plan and the planted pictures to a folder."""
    check_outputs([Output("FOLDER", Path(folder), "new")])

    from unmemorize.testbed.embedded import export as export_testbed

    export_testbed(Path(folder))
    if json:
        print_json({"folder": folder})
        return
    say(folder)
    _audit_next(folder)


@command(
    TESTBED,
    "unmemorize testbed train out --data testbed-data",
    "unmemorize testbed train out --data testbed-data --branch C --device cuda",
    to=testbed_app,
)
def train(
    folder: Annotated[str, option("Folder for the trained pipeline.")],
    *,
    data: Annotated[str, option("Folder for artwork and checkpoints.")] = "testbed-data",
    twin: Annotated[bool, option("Train the twin of the ladder, without the duplicates.")] = False,
    branch: Annotated[Literal["A", "B", "C", "D", "trunk"] | None, option("Train this part of the panel.")] = None,
    family: Annotated[Literal["unet", "flow"], option("Of the panel: a UNet, or a flow transformer.")] = "unet",
    words: Annotated[bool, option("Train a branch of the words' model, in which words alone are planted.")] = False,
    seed: Annotated[Seed, option("Seed of the run.")] = 0,
    device: Annotated[str, option("cpu or cuda.")] = "cpu",
    json: Json = False,
) -> None:
    """Train a branch of the panel, the model with a ladder of doses, or its twin, from the artwork.

    A stopped run continues where it was.
    """
    check_outputs([Output("FOLDER", Path(folder), "folder"), Output("--data", Path(data), "folder")])
    if branch and twin:
        raise UserError("--branch and --twin: the panel's branches are each other's twins: name one of the two options")

    if family == "flow" and not branch:
        raise UserError("--family flow: of the panel alone: name a part with --branch")
    if words and (family == "flow" or branch in (None, "trunk")):
        raise UserError("--words: a branch of a UNet alone: name one with --branch")

    from unmemorize.testbed import flow, train_panel
    from unmemorize.testbed.recipe import Recipe
    from unmemorize.testbed.train import train as train_testbed

    recipe = Recipe(seed=seed)
    if branch and family == "flow":
        part = "" if branch == "trunk" else branch
        flow.train_flow(Path(data), Path(folder), part, flow.FlowRecipe(seed=seed), device)
    elif branch == "trunk":
        train_panel.train_trunk(Path(data), Path(folder), recipe, device)
    elif branch:
        train_panel.train_branch(Path(data), Path(folder), branch, recipe, device, words=words)
    else:
        train_testbed(Path(data), Path(folder), recipe, duplicates=not twin, device=device)
    if json:
        print_json({"folder": folder})
        return
    say(folder)
    _audit_next(folder)


def _audit_next(folder: str) -> None:
    images = f"{folder}/images"
    next_step("audit", f"{folder}/model", "--prompts", f"{images}/metadata.jsonl", "--references", images)
