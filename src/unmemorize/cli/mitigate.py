"""`unmemorize mitigate`."""

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
from unmemorize.core.specs import MitigateSpec

Method = Literal["erase", "adversarial-finetune", "finetune", "siss", "neggrad", "deletion"]
RATES = ("copy_rate_before", "copy_rate_after", "attacked_copy_rate_after")


@app.command()
def mitigate(
    folder: Annotated[str, typer.Option("--out", help="A new folder for the model.")],
    model: Model = "testbed",
    method: Annotated[Method, typer.Option(help="How to remove.")] = "erase",
    targets: Targets = "",
    controls: Controls = "",
    references: References = "",
    run: Annotated[str, typer.Option(help="Folder of checkpoints and measurements; OUT.run by default.")] = "",
    edit: Annotated[str, typer.Option(help="Edit of the model that makes surrogates; Wanda's by default.")] = "",
    updates: Annotated[int, typer.Option(min=0, help="Updates of the model; 0: the default of the method.")] = 0,
    lr: Annotated[float, typer.Option(min=0, help="Learning rate; 1e-5, for the testbed 2e-4.")] = 0.0,
    batch: Annotated[int, typer.Option(min=1, help="Rows of either kind in an update.")] = 8,
    inner: Annotated[int, typer.Option(min=1, help="Attack updates before an update of the model.")] = 50,
    lora: Annotated[int, typer.Option(min=0, help="Rank of LoRA adapters; 0 trains all weights.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of training.")] = 0,
    pictures: Pictures = 4,
    steps: Steps = 0,
    guidance: Guidance = None,
    attack_updates: Annotated[int, typer.Option(min=1, help="Updates of the attacks that judge.")] = 50,
    low_memory: Annotated[bool, typer.Option("--low-memory", help="bf16 and gradient checkpointing.")] = False,
    captions: Annotated[bool, typer.Option("--captions", help="Show removed captions in the model card.")] = False,
    sscd: Sscd = "",
    recipe: Recipe = "sscd-320",
    as_json: Json = False,
) -> None:
    """Fine-tune memorized pictures out of a model and test what an attack still brings back."""
    checkpoints = Path(run or f"{Path(folder)}.run")
    outputs = [Output("--out", Path(folder), "new"), Output("--run", checkpoints, "run")]
    check_outputs(outputs, [model, edit, sscd, targets, controls, references])

    from unmemorize.jobs.mitigate import mitigate as run_mitigate

    spec = MitigateSpec(
        model=model,
        method=method,
        targets=targets,
        controls=controls,
        references=references,
        edit=edit,
        updates=updates,
        lr=lr,
        batch=batch,
        inner=inner,
        lora=lora,
        seed=seed,
        pictures=pictures,
        steps=steps,
        guidance=guidance,
        attack_updates=attack_updates,
        low_memory=low_memory,
        captions=captions,
        sscd=sscd,
        recipe=recipe,
    )
    with bars() as progress:
        found = run_mitigate(spec, Path(folder), checkpoints, progress)
    if as_json:
        shown = {name: found[name][0] for name in RATES}
        print_json(shown | {name: found[name] for name in ("quality", "evaluations")})
    else:
        _show(found, folder)


def _show(found: dict[str, Any], folder: str) -> None:
    table = Table("copies", "share", "95% interval", box=None, pad_edge=False)
    for name, (value, low, high) in ((name, found[name]) for name in RATES):
        add_row(table, name.replace("_", " "), f"{value:.3f}", f"{low:.3f} to {high:.3f}")
    out.print(table, highlight=False)
    cost = f"{found['updates']} updates, {found['evaluations']} denoiser evaluations, {found['seconds']} seconds"
    say(cost)
    say(f"model: {folder}")
