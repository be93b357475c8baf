"""The command line: parsing and printing, no logic."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from unmemorize import __version__
from unmemorize.core.errors import UnmemorizeError

app = typer.Typer(
    help="Find what a text-to-image diffusion model has memorized.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
testbed_app = typer.Typer(help="The embedded models with planted memories.", no_args_is_help=True)
app.add_typer(testbed_app, name="testbed")
errors = Console(stderr=True)
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text.")]


@app.command()
def audit(
    model: Annotated[str, typer.Argument(help="testbed, testbed-twin, a pipeline folder, or a hub id.")] = "testbed",
    prompts: Annotated[str, typer.Option(help="File of prompts: txt, csv, tsv, jsonl or parquet.")] = "",
    column: Annotated[str, typer.Option(help="Caption column, where its name is unusual.")] = "",
    images: Annotated[str, typer.Option(help="Folder of training pictures to compare with.")] = "",
    run: Annotated[str, typer.Option(help="Run directory, where a killed run continues; runs/MODEL by default.")] = "",
    seeds: Annotated[int, typer.Option(min=1, help="Seeds per prompt for the score.")] = 4,
    images_per_prompt: Annotated[int, typer.Option(min=1, help="Pictures generated per chosen prompt.")] = 2,
    generate: Annotated[int, typer.Option(min=1, help="How many prompts to generate.")] = 100,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Sampling steps.")] = 16,
    guidance: Annotated[float, typer.Option(min=0, help="Guidance scale.")] = 7.5,
    sscd: Annotated[str, typer.Option(help="SSCD file, .onnx or TorchScript (which runs the code inside it).")] = "",
    recipe: Annotated[str, typer.Option(help="SSCD recipe.")] = "sscd-320",
    as_json: Json = False,
) -> None:
    """Score prompts, generate, compare with the training pictures, and write a report."""
    # Imported here so that --help and mistakes in options answer at once.
    from unmemorize.audit import AuditSpec, run_audit

    spec = AuditSpec(
        model=model,
        prompts=prompts,
        column=column,
        images=images,
        seeds=tuple(range(seeds)),
        images_per_prompt=min(images_per_prompt, seeds),
        generate=generate,
        steps=steps,
        guidance=guidance,
        sscd=sscd,
        recipe=recipe,
    )
    with _bars() as bars:
        tasks: dict[str, int] = {}

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done)  # type: ignore[arg-type]

        folder = Path(run or Path("runs") / Path(model).name)
        summary = run_audit(spec, folder, progress)
    if as_json:
        print(json.dumps(summary | {"run": str(folder)}, ensure_ascii=False))
    else:
        _print_summary(summary, folder)


@app.command()
def report(run: Annotated[str, typer.Argument(help="Run directory.")]) -> None:
    """Rebuild a run's report."""
    from unmemorize.report.build import build_report

    print(build_report(Path(run)))


@testbed_app.command()
def describe(as_json: Json = False) -> None:
    """Show what is planted."""
    from unmemorize.testbed.embedded import describe as describe_plan

    rows = describe_plan()
    if as_json:
        print(json.dumps(rows))
        return
    table = Table("kind", "copies", "entries", "prompts", "training rows", "what it is")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console().print(table)


@testbed_app.command()
def export(folder: Annotated[str, typer.Argument(help="A new folder.")]) -> None:
    """Copy the models, the plan and the planted pictures to a folder."""
    from unmemorize.testbed.embedded import export as export_testbed

    export_testbed(Path(folder))
    print(folder)


@testbed_app.command()
def train(
    out: Annotated[str, typer.Argument(help="Folder for the trained pipeline.")],
    data: Annotated[str, typer.Option(help="Folder for artwork and checkpoints.")] = "testbed-data",
    twin: Annotated[bool, typer.Option("--twin", help="Train the twin, without the duplicates.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the run.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Train the planted model, or its twin, from the artwork. A killed run continues where it was."""
    from unmemorize.testbed.train import Recipe
    from unmemorize.testbed.train import train as train_testbed

    train_testbed(Path(data), Path(out), Recipe(seed=seed), duplicates=not twin, device=device)
    print(out)


def _bars() -> Progress:
    columns = (TextColumn("{task.description:>9}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=errors)


def _print_summary(summary: dict, run: Path) -> None:
    console = Console()
    colour = {"issue": "bold red", "passed": "bold green"}.get(summary["verdict"], "bold yellow")
    console.print(f"[{colour}]{summary['verdict']}[/] {escape(summary['sentence'])}")
    if summary["detector"]:
        area, control = summary["detector"]["auc"], summary["text_control"]
        text = f"{control['auc']['value']:.2f}" if control else "not applicable"
        console.print(
            f"noise-gap AUC {area['value']:.3f} [{area['low']:.3f}, {area['high']:.3f}]; text alone {text}",
            highlight=False,
            markup=False,
        )
    console.print(f"report: {run / 'report.html'}", highlight=False, markup=False)


def _version(show: bool) -> None:
    if show:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; a mistake is one line and exit code 2."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # or it warns of torchvision, which nothing here needs
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")  # or it prints what it cut off an overlong prompt
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads slow a busy machine manyfold
    try:
        app()
    except (UnmemorizeError, OSError) as error:
        errors.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
