"""`unmemorize locate` and `unmemorize apply`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from rich.table import Table

from unmemorize.cli.app import EXPLAIN, REMOVE, DryRun, Json, command, option
from unmemorize.cli.checks import check
from unmemorize.cli.terminal import add_row, next_step, out, print_json, say, show_expected, working
from unmemorize.core.files import require_file
from unmemorize.core.outputs import Output, check_outputs
from unmemorize.core.specs import EMBEDDED, ApplySpec, LocateSpec

KEYS = ("method", "units", "selected", "per_layer", "evaluations")


@command(
    EXPLAIN,
    "unmemorize locate testbed --method wanda:sparsity=0.4 --out wanda.safetensors",
    "unmemorize locate MODEL --prompts memorized.csv --ordinary ordinary.txt",
)
def locate(
    spec: LocateSpec,
    *,
    edit: Annotated[str, option("Where to write the edit: NAME.safetensors.", name="--out")] = "edit.safetensors",
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Find the channels or weights that hold memorized pictures, and save their removal as an edit."""
    path = Path(edit)
    files = [Output("--out", file, "file") for file in (path, path.parent / f"{path.stem}.json")]
    check(spec, *([] if dry_run else files))

    if dry_run:
        from unmemorize.stages.forecast import forecast_locate

        show_expected(forecast_locate(spec), json)
        return

    from unmemorize.stages.locate import locate as run_locate

    with working() as progress:
        located, _ = run_locate(spec, Path(edit), progress)
    if json:
        print_json({key: getattr(located, key) for key in KEYS})
        return
    table = Table("layer", located.units)
    for name, count in located.per_layer.items():
        add_row(table, name, count)
    if located.selected:
        out.print(table)
    else:
        say("none of the prompts is memorized: the edit is empty")
    say(f"{located.selected} {located.units}, {located.evaluations} denoiser evaluations")
    say(f"edit: {edit}")
    next_step("attack", spec.model, "--mitigation", edit, *against(spec.model))


def against(model: str) -> tuple[str, ...]:
    """Options of an attack: the testbed brings pictures, for another model those that `export` writes are named."""
    return () if model in EMBEDDED else ("--targets", "copied/targets", "--controls", "copied/controls")


@command(
    REMOVE,
    "unmemorize apply testbed edit.safetensors --out pruned",
    "unmemorize apply MODEL edit.safetensors --out pruned --force",
)
def apply(
    spec: ApplySpec,
    edit: Annotated[str, option("An edit: NAME.safetensors, with its .json beside it.")],
    *,
    folder: Annotated[str, option("A new folder for the edited pipeline.", name="--out")],
    force: Annotated[bool, option("Also if the edit was made for another model.")] = False,
    json: Json = False,
) -> None:
    """Write a model with an edit applied, as a folder that from_pretrained loads."""
    output = Output("--out", Path(folder), "new")
    check_outputs([output], [spec.model, edit])
    require_file(Path(edit), "an edit is a .safetensors file with a .json file beside it")
    check(spec, output)

    from unmemorize.stages.locate import apply_edit

    apply_edit(spec, Path(edit), Path(folder), force=force)
    if json:
        print_json({"model": folder})
        return
    say(folder)
    next_step("attack", folder, *against(folder))
