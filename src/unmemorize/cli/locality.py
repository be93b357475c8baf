"""`unmemorize locality`: whether a picture's memory lies in one place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Column as Head
from rich.table import Table

from unmemorize.cli.app import EXPLAIN, Json, Run, command
from unmemorize.cli.checks import check
from unmemorize.cli.terminal import add_row, next_step, out, print_json, say, working
from unmemorize.core.outputs import Output
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
def locality(spec: LocalitySpec, *, run: Run = "", json: Json = False) -> None:
    """Attack one picture from many starts and measure how alike the embeddings, activations and weights are."""
    folder = Path(run or Path("runs") / f"locality-{Path(spec.model).name}-{Path(spec.target).stem}")
    check(spec, Output("--run", folder, "run"))

    from unmemorize.stages.locality import locality as run_locality

    with working(folder) as progress:
        result = run_locality(spec, folder, progress)
    if json:
        print_json(result | {"run": str(folder)})
        return
    _print(result)
    say(f"picture, embeddings and every distance: {folder}")
    next_step("locate", spec.model, *(("--prompts", spec.prompts) if spec.prompts else ()), "--out", "edit.safetensors")


def _print(result: dict[str, Any]) -> None:
    from unmemorize.report.locality import short

    found, distance = result["embeddings"], result["distance"]
    say(f"{found['adversarial']} of {result['inits']} random inits lead to copies")
    table = Table("group", "embeddings", "distance between two", "÷ inits'", title="Embeddings")
    for group, name in NAMES.items():
        ratio = distance[group]["value"] / distance["inits"]["value"]
        add_row(table, name, found[group], _interval(distance[group], 1), f"{ratio:.2f}")
    out.print(table)
    say(f"distance that the attack moved an embedding: {_interval(result['moved'], 1)}")
    heads = ("method", "L2: same", "other", "÷ inits'", "IoU: same", "random", "other", "random")
    table = Table(Head("layer", no_wrap=True), *heads, box=None, pad_edge=False)
    table.title = "Activations (L2) and selected units (IoU): same picture, and prompts of different ones"
    for layer in result["layers"]:
        far, alike = layer["discrepancy"], layer["agreement"]
        cells = [f"{far[group]['value']:.1f}" for group in ("adversarial", "memorized")]
        cells += [f"{far['adversarial']['value'] / far['inits']['value']:.2f}"]
        for group in ("adversarial", "memorized"):
            cells += [f"{alike[group]['value']:.2f}", f"{layer['chance'][group]:.2f}"]
        add_row(table, short(layer["layer"]), layer["method"], *cells)
    out.print(table)
    alike = result["between_methods"]["adversarial"]
    say(
        f"NeMo and Wanda spread over blocks alike: {_interval(alike['same'], 2)} for the same embedding, "
        f"{alike['different']:.2f} for two"
    )


def _interval(found: dict[str, Any], digits: int) -> str:
    return f"{found['value']:.{digits}f} [{found['low']:.{digits}f}, {found['high']:.{digits}f}]"
