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
    """Show what is planted: in the panel's branches, of which `testbed` is C, and in the model of words."""
    from unmemorize.testbed.embedded import describe_panel

    panel = describe_panel()
    if json:
        print_json({"panel": panel})
        return
    names = "testbed-a to -d, -flow-c, -flow-d, -retrained-c, -words"
    table = Table("kind", "entries", "prompts", "doses", "what it is", title=names)
    for row in panel:
        add_row(table, *row.values())
    out.print(table)
    say("testbed is testbed-c.")
    say("Every branch has each dose equally often, and every picture has another dose in each of them:")
    say("what is memorized in one is new to another. Choose settings on a and b, report on c and d.")
    say("flow: a transformer of Stable Diffusion 3's shape, on the same plan; retrained-c: C from another seed.")
    say("testbed-words: nothing but triggers.")
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
    "unmemorize testbed train out --data testbed-data --branch D --device cuda",
    to=testbed_app,
)
def train(
    folder: Annotated[str, option("Folder for the trained pipeline.")],
    *,
    data: Annotated[str, option("Folder for artwork and checkpoints.")] = "testbed-data",
    branch: Annotated[Literal["A", "B", "C", "D", "trunk"], option("Train this part of the panel.")] = "C",
    family: Annotated[Literal["unet", "flow"], option("A UNet, or a flow transformer.")] = "unet",
    words: Annotated[bool, option("Train a branch of the words' model, in which words alone are planted.")] = False,
    seed: Annotated[Seed, option("Seed of the run.")] = 0,
    device: Annotated[str, option("cpu or cuda.")] = "cpu",
    json: Json = False,
) -> None:
    """Train a branch of the panel, or the trunk that branches start from, from the artwork.

    A stopped run continues where it was.
    """
    check_outputs([Output("FOLDER", Path(folder), "folder"), Output("--data", Path(data), "folder")])
    if words and (family == "flow" or branch == "trunk"):
        raise UserError("--words: a branch of a UNet alone: leave out --family flow and --branch trunk")

    from unmemorize.testbed import flow, train_panel
    from unmemorize.testbed.recipe import Recipe

    recipe = Recipe(seed=seed)
    if family == "flow":
        part = "" if branch == "trunk" else branch
        flow.train_flow(Path(data), Path(folder), part, flow.FlowRecipe(seed=seed), device)
    elif branch == "trunk":
        train_panel.train_trunk(Path(data), Path(folder), recipe, device)
    else:
        train_panel.train_branch(Path(data), Path(folder), branch, recipe, device, words=words)
    if json:
        print_json({"folder": folder})
        return
    say(folder)
    if branch == "trunk":
        same_seed = ["--seed", str(seed)] if seed else []
        next_step("testbed", "train", folder, "--data", data, "--family", family, *same_seed)
    else:
        _audit_next(folder)


def _audit_next(folder: str) -> None:
    images = f"{folder}/images"
    next_step("audit", f"{folder}/model", "--prompts", f"{images}/metadata.jsonl", "--references", images)
