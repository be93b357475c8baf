"""`unmemorize locality`: whether a picture's memory lies in one place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Column as Head
from rich.table import Table

from unmemorize.cli.app import EXPLAIN, DryRun, Json, Run, command
from unmemorize.cli.checks import check
from unmemorize.cli.terminal import add_row, next_step, out, print_json, say, show_expected, working
from unmemorize.core.outputs import Output
from unmemorize.core.run import on_disk
from unmemorize.core.specs import LocalitySpec

NAMES = {
    "adversarial": "embeddings of this picture",
    "inits": "their random inits",
    "memorized": "prompts of different memorized pictures",
    "ordinary": "ordinary prompts",
}


@command(
    EXPLAIN,
    "unmemorize locality testbed --target verbatim-0100-00-00.png",
    "unmemorize locality MODEL --target pictures/cat.png --references pictures --prompts memorized.txt",
)
def locality(spec: LocalitySpec, *, run: Run = "", dry_run: DryRun = False, json: Json = False) -> None:
    """Attack one picture from many starts and measure how alike the embeddings are, and the weights that they use."""
    folder = on_disk(Path(run or Path("runs") / f"locality-{Path(spec.model).name}-{Path(spec.target).stem}"))
    check(spec, *([] if dry_run else [Output("--run", folder, "run")]))

    if dry_run:
        from unmemorize.stages.forecast import forecast_locality

        show_expected(forecast_locality(spec), json)
        return

    from unmemorize.stages.locality import locality as run_locality

    with working(folder) as progress:
        result = run_locality(spec, folder, progress)
    if json:
        print_json(result | {"run": str(folder)})
        return
    _print(result, [text.partition(":")[0] for text in spec.method])
    say(f"embeddings, and what was selected for each: {folder}")
    next_step("locate", spec.model, *(("--prompts", spec.prompts) if spec.prompts else ()), "--out", "edit.safetensors")


def _print(result: dict[str, Any], methods: list[str]) -> None:
    from unmemorize.localize.locality import short

    counts, distance = result["embeddings"], result["distance"]
    mirrored = f"; {result['mirrored']:.0%} of the copies are mirrored" if result["mirrored"] else ""
    say(f"{counts['adversarial']} of {result['inits']} random inits lead to copies{mirrored}")
    if result["criterion_errors"]:
        say(result["criterion_errors"])
    table = Table("group", "embeddings", "distance between two", "÷ inits'", title="Embeddings")
    for group, name in NAMES.items():
        ratio = distance[group]["value"] / distance["inits"]["value"]
        add_row(table, name, counts[group], _interval(distance[group], 1), f"{ratio:.2f}")
    out.print(table)
    say(f"distance that the attack moved an embedding: {_interval(result['moved'], 1)}")
    heads = ("method", "same picture", "random sets", "different ones", "random sets", "selected", "of")
    table = Table(Head("layer", no_wrap=True), *heads, box=None, pad_edge=False)
    table.title = "Overlap (IoU) of the units that two embeddings have selected"
    for layer in result["layers"]:
        cells = []
        for group in ("adversarial", "memorized"):
            cells += [f"{layer['agreement'][group]['value']:.2f}", f"{layer['chance'][group]:.2f}"]
        selected = f"{layer['selected']['adversarial']:.0f}"
        add_row(table, short(layer["layer"]), layer["method"], *cells, selected, layer["units"])
    out.print(table)
    for method in methods:
        if all(layer["method"] != method for layer in result["layers"]):
            say(f"{method} selected nothing for any embedding")


def _interval(interval: dict[str, Any], digits: int) -> str:
    return f"{interval['value']:.{digits}f} [{interval['low']:.{digits}f}, {interval['high']:.{digits}f}]"
