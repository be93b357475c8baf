"""`unmemorize audit` and `unmemorize report`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from unmemorize.cli.app import Column, Images, Json, Model, Prompts, Recipe, Sscd, app, bars, out


@app.command()
def audit(
    model: Model = "testbed",
    prompts: Prompts = "",
    column: Column = "",
    images: Images = "",
    run: Annotated[str, typer.Option(help="Run directory, where a killed run continues; runs/MODEL by default.")] = "",
    seeds: Annotated[int, typer.Option(min=1, help="Seeds per prompt for the score.")] = 4,
    images_per_prompt: Annotated[int, typer.Option(min=1, help="Pictures generated per chosen prompt.")] = 2,
    generate: Annotated[int, typer.Option(min=1, help="How many prompts to generate.")] = 100,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Sampling steps.")] = 16,
    guidance: Annotated[float, typer.Option(min=0, help="Guidance scale.")] = 7.5,
    sscd: Sscd = "",
    recipe: Recipe = "sscd-320",
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
    with bars() as progress:
        folder = Path(run or Path("runs") / Path(model).name)
        summary = run_audit(spec, folder, progress)
    if as_json:
        print(json.dumps(summary | {"run": str(folder)}, ensure_ascii=False))
    else:
        _print_summary(summary, folder)


@app.command()
def report(run: Annotated[str, typer.Argument(help="Run directory.")]) -> None:
    """Rebuild a run's report."""
    from unmemorize.report.rebuild import rebuild_report

    print(rebuild_report(Path(run)))


def _print_summary(summary: dict, run: Path) -> None:
    colour = {"issue": "bold red", "passed": "bold green"}.get(summary["verdict"], "bold yellow")
    out.print(f"[{colour}]{summary['verdict']}[/] {escape(summary['sentence'])}")
    if summary["detector"]:
        area, control = summary["detector"]["auc"], summary["text_control"]
        text = f"{control['auc']['value']:.2f}" if control else "not applicable"
        out.print(
            f"noise-gap AUC {area['value']:.3f} [{area['low']:.3f}, {area['high']:.3f}]; text alone {text}",
            highlight=False,
            markup=False,
        )
    out.print(f"report: {run / 'report.html'}", highlight=False, markup=False)
