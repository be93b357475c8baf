"""`unmemorize export`: from what an audit found to the commands that do something about it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from unmemorize.cli.app import REMOVE, Json, command, option
from unmemorize.cli.terminal import next_step, print_json, say
from unmemorize.core.outputs import Output, check_outputs
from unmemorize.core.run import load_record, on_disk


@command(REMOVE, "unmemorize export runs/mine --out copied", "unmemorize export runs/mine --out copied --json")
def export(
    run: Annotated[str, option("Run directory of an audit.")],
    *,
    out: Annotated[str, option("A new folder for prompts.csv, targets/ and controls/.")] = "copied",
    json: Json = False,
) -> None:
    """Write what an audit found copied in the form that locate, attack and mitigate take."""
    check_outputs([Output("--out", Path(out), "new")], [run])

    from unmemorize.stages.export import export_copied

    folder = on_disk(Path(run))
    counts = export_copied(folder, Path(out))
    if json:
        print_json(counts | {"folder": out})
        return
    say(f"{counts['prompts']} prompts, {counts['targets']} pictures they copy, {counts['controls']} not copied")
    record = load_record(folder)
    model = str(record.spec["model"]) if record else "MODEL"
    next_step("locate", model, "--method", "wanda", "--prompts", f"{out}/prompts.csv", "--out", "edit.safetensors")
