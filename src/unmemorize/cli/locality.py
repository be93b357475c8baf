"""`unmemorize locality`: whether a picture's memory lies in one place."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Column as Head
from rich.table import Table

from unmemorize.cli.app import (
    Column,
    Guidance,
    Json,
    Model,
    Ordinary,
    Prompts,
    Recipe,
    References,
    Sscd,
    Steps,
    app,
    bars,
)
from unmemorize.cli.terminal import add_row, out, print_json, say
from unmemorize.core.outputs import Output, check_outputs
from unmemorize.core.specs import LocalitySpec

Layers = Annotated[Literal["down-mid", "all"], typer.Option(help="NeMo: every cross-attention, or as the paper.")]
NAMES = {
    "adversarial": "embeddings of this picture",
    "inits": "their random inits",
    "memorized": "prompts of different memorized pictures",
    "ordinary": "ordinary prompts",
}


@app.command()
def locality(
    model: Model,
    target: Annotated[str, typer.Option(help="The training picture: a file among the references.")],
    references: References = "",
    prompts: Prompts = "",
    column: Column = "",
    ordinary: Ordinary = "",
    inits: Annotated[int, typer.Option(min=2, help="Random embeddings to attack from.")] = 100,
    updates: Annotated[int, typer.Option(min=1, help="Updates of the attack.")] = 50,
    pictures: Annotated[int, typer.Option(min=1, help="Held-out pictures of each embedding; half must be copies.")] = 2,
    steps: Steps = 0,
    guidance: Guidance = None,
    layers: Layers = "all",
    refine: Annotated[bool, typer.Option(help="NeMo: free what the channels do without; slow.")] = False,
    sparsity: Annotated[float, typer.Option(help="Wanda: share of each weight row.")] = 0.01,
    sscd: Sscd = "",
    recipe: Recipe = "sscd-320",
    batch: Annotated[int, typer.Option(min=1, help="Rows per denoiser evaluation; changes no result.")] = 64,
    run: Annotated[str, typer.Option(help="Run directory, where a killed study continues.")] = "",
    as_json: Json = False,
) -> None:
    """Attack one picture from many starts and measure how alike the embeddings, activations and weights are."""
    folder = Path(run or Path("runs") / f"locality-{Path(model).name}-{Path(target).stem}")
    check_outputs([Output("--run", folder, "run")], [model, target, references, prompts, ordinary, sscd])

    from unmemorize.jobs.locality import locality as run_locality

    spec = LocalitySpec(
        model=model,
        target=target,
        references=references,
        prompts=prompts,
        column=column,
        ordinary=ordinary,
        inits=inits,
        updates=updates,
        pictures=pictures,
        steps=steps,
        guidance=guidance,
        layers=layers,
        refine=refine,
        sparsity=sparsity,
        sscd=sscd,
        recipe=recipe,
        batch=batch,
    )
    with bars() as progress:
        result = run_locality(spec, folder, progress)
    if as_json:
        print_json(result | {"run": str(folder)})
        return
    _print(result)
    say(f"picture, embeddings and every distance: {folder}")


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
