"""`unmemorize mitigate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from unmemorize.cli.app import Json, Model, Sscd, Steps, app, bars
from unmemorize.cli.terminal import add_row, out, print_json, say
from unmemorize.core.outputs import Output, check_outputs

Method = Literal["erase", "adversarial-finetune", "finetune", "siss", "neggrad", "deletion"]
RATES = ("copy_rate_before", "copy_rate_after", "attacked_copy_rate_after")


@app.command()
def mitigate(
    folder: Annotated[str, typer.Option("--out", help="A new folder for the model.")],
    model: Model = "testbed",
    method: Annotated[Method, typer.Option(help="How to remove.")] = "erase",
    images: Annotated[str, typer.Option(help="Folder of memorized pictures with captions, or plan.")] = "plan",
    ordinary: Annotated[str, typer.Option(help="Folder of ordinary pictures with captions, or plan.")] = "plan",
    run: Annotated[str, typer.Option(help="Folder of checkpoints and measurements; OUT.run by default.")] = "",
    edit: Annotated[str, typer.Option(help="Edit of the model that makes surrogates; Wanda's by default.")] = "",
    updates: Annotated[int, typer.Option(min=0, help="Updates of the model; 0: the default of the method.")] = 0,
    lr: Annotated[float, typer.Option(min=0, help="Learning rate; 1e-5, for the testbed 2e-4.")] = 0.0,
    batch: Annotated[int, typer.Option(min=1, help="Rows of either kind in an update.")] = 8,
    inner: Annotated[int, typer.Option(min=1, help="Attack updates before an update of the model.")] = 50,
    lora: Annotated[int, typer.Option(min=0, help="Rank of LoRA adapters; 0 trains all weights.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of training.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="Pictures a prompt in measurements.")] = 4,
    sampling: Steps = 0,
    attack_steps: Annotated[int, typer.Option(min=1, help="Updates of the attacks that judge.")] = 50,
    low_memory: Annotated[bool, typer.Option("--low-memory", help="bf16 and gradient checkpointing.")] = False,
    captions: Annotated[bool, typer.Option("--captions", help="Show removed captions in the model card.")] = False,
    sscd: Sscd = "",
    as_json: Json = False,
) -> None:
    """Fine-tune memorized pictures out of a model and test what an attack still brings back."""
    checkpoints = Path(run or f"{Path(folder)}.run")
    outputs = [Output("--out", Path(folder), "new"), Output("--run", checkpoints, "run")]
    pictures = [name for name in (images, ordinary) if name != "plan"]
    check_outputs(outputs, [model, edit, sscd, *pictures])

    from unmemorize.jobs.mitigate import mitigate as run_mitigate
    from unmemorize.jobs.objectives import MitigateSpec

    spec = MitigateSpec(
        model=model,
        method=method,
        images=images,
        ordinary=ordinary,
        edit=edit,
        updates=updates,
        lr=lr,
        batch=batch,
        inner=inner,
        lora=lora,
        seed=seed,
        seeds=tuple(range(seeds)),
        sampling=sampling,
        attack_steps=attack_steps,
        low_memory=low_memory,
        captions=captions,
        sscd=sscd,
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
