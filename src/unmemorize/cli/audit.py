"""`unmemorize audit`, `unmemorize report` and `unmemorize compare`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from unmemorize.cli.app import Column, Images, Json, Model, Prompts, Recipe, Sscd, app, bars, errors, out

if TYPE_CHECKING:
    from unmemorize.audit import AuditSpec, Forecast
    from unmemorize.verdict.conditions import Condition

BOUND_HELP = "A finding that is a rate passes where its upper 95% limit is at most this; 0.10 by default."
MET = 1  # exit code where a condition of --fail-on is met


class Plan(StrEnum):
    """How much is done."""

    quick = "quick"
    full = "full"


class Evidence(StrEnum):
    """What a page shows of training pictures and of their copies."""

    none = "none"
    thumb = "thumb"
    full = "full"


Shown = Annotated[Evidence, typer.Option(help="Training pictures and their copies in the page.")]


@app.command()
def audit(
    model: Model = "testbed",
    prompts: Prompts = "",
    column: Column = "",
    images: Images = "",
    ordinary: Annotated[str, typer.Option(help="File of prompts like these that are not in the training set.")] = "",
    held_out: Annotated[str, typer.Option(help="Folder of pictures like these that were not trained on.")] = "",
    run: Annotated[str, typer.Option(help="Run directory, where a killed run continues; runs/MODEL by default.")] = "",
    plan: Annotated[Plan, typer.Option(help="Defaults for how much is generated and explained.")] = Plan.quick,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what to expect, and do nothing.")] = False,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds per prompt for the score.")] = 4,
    images_per_prompt: Annotated[int | None, typer.Option(min=1, help="Pictures generated per chosen prompt.")] = None,
    generate: Annotated[int | None, typer.Option(min=1, help="How many prompts to generate.")] = None,
    explain: Annotated[int | None, typer.Option(min=1, help="How many prompts to explain.")] = None,
    mitigate: Annotated[str | None, typer.Option(help="Of guard, wanda and nemo, apart by commas, or none.")] = None,
    mitigated: Annotated[list[str] | None, typer.Option(help="A model mitigated before; may be repeated.")] = None,
    sparsity: Annotated[float, typer.Option(min=0, max=1, help="Share of each row Wanda may take; 0: default.")] = 0,
    attacked: Annotated[int | None, typer.Option(min=1, help="How many copied pictures to attack.")] = None,
    attack_steps: Annotated[int | None, typer.Option(min=0, help="Updates of an attack; 0 for none.")] = None,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Sampling steps.")] = 16,
    guidance: Annotated[float, typer.Option(min=0, help="Guidance scale.")] = 7.5,
    sscd: Sscd = "",
    recipe: Recipe = "sscd-320",
    bound: Annotated[float | None, typer.Option(min=0.001, max=0.5, help=BOUND_HELP)] = None,
    evidence: Shown = Evidence.full,
    fail_on: Annotated[list[str] | None, typer.Option(help="Exit 1 if this holds: 'copied_prompts > 0'.")] = None,
    junit: Annotated[str, typer.Option(help="Write the findings as JUnit XML to this file.")] = "",
    as_json: Json = False,
) -> None:
    """Score prompts, generate, compare with the training pictures, explain, mitigate, attack, and write a report."""
    # Imported here so that --help and mistakes in options answer at once.
    from unmemorize.verdict.conditions import parse_conditions

    conditions = parse_conditions(fail_on or [])

    from unmemorize.audit import PLANS, forecast, run_audit

    given = {"model": model, "prompts": prompts, "column": column, "images": images, "ordinary": ordinary}
    given |= {"held_out": held_out, "steps": steps, "guidance": guidance, "sscd": sscd, "recipe": recipe}
    given |= {"seeds": tuple(range(seeds)), "mitigated": tuple(mitigated or ()), "sparsity": sparsity}
    asked = {"images_per_prompt": images_per_prompt, "generate": generate, "explain": explain, "mitigate": mitigate}
    asked |= {"attacked": attacked, "attack_steps": attack_steps, "bound": bound}
    spec = replace(PLANS[plan.value], **given, **{key: value for key, value in asked.items() if value is not None})
    if dry_run:
        _print_forecast(forecast(spec), as_json)
        return
    folder = Path(run or Path("runs") / Path(model).name)
    _announce(spec)
    with bars() as progress:
        summary = run_audit(spec, folder, progress, evidence=evidence.value)
    _finish(summary, folder, conditions, junit, as_json)


@app.command()
def report(
    run: Annotated[str, typer.Argument(help="Run directory.")],
    evidence: Shown = Evidence.full,
) -> None:
    """Rebuild a run's report."""
    from unmemorize.report.rebuild import rebuild_report

    print(rebuild_report(Path(run), evidence=evidence.value))


@app.command()
def compare(
    run_a: Annotated[str, typer.Argument(help="Run directory, such as before a change.")],
    run_b: Annotated[str, typer.Argument(help="Run directory, such as after it.")],
    out: Annotated[str, typer.Option(help="The page to write.")] = "compare.html",
    evidence: Shown = Evidence.full,
) -> None:
    """Put two audits on one page, paired by prompt."""
    from unmemorize.report.compare import build_comparison

    print(build_comparison(Path(run_a), Path(run_b), Path(out), evidence=evidence.value))


def _announce(spec: AuditSpec) -> None:
    """A full plan says what it will take before it takes it."""
    from unmemorize.audit import forecast

    if spec.plan == "full":
        expected = forecast(spec)
        minutes = sum(expected.seconds.values()) / 60
        errors.print(f"about {minutes:.0f} min: {sum(expected.evaluations.values()):,} evaluations", highlight=False)


def _finish(summary: dict[str, Any], run: Path, conditions: Sequence[Condition], junit: str, as_json: bool) -> None:
    """Print the outcome, write it for the build server, and exit by its conditions."""
    from unmemorize.verdict.junit import write_junit

    if junit:
        write_junit(Path(junit), summary, conditions)
    if as_json:
        print(json.dumps(_verdict(summary, run), ensure_ascii=False))
    else:
        _print_summary(summary, run)
    met = [condition for condition in conditions if condition.met(summary["measures"])]
    for condition in met:
        errors.print(f"fail-on {condition.explain(summary['measures'])}", style="red", markup=False, highlight=False)
    if met:
        raise typer.Exit(MET)


def _verdict(summary: dict[str, Any], run: Path) -> dict[str, Any]:
    findings = [{key: found[key] for key in ("code", "severity", "state", "count")} for found in summary["findings"]]
    return {"verdict": summary["verdict"], "findings": findings, "run": str(run)}


def _print_forecast(expected: Forecast, as_json: bool) -> None:
    if as_json:
        print(json.dumps(asdict(expected)))
        return
    table = Table("stage", "evaluations", "seconds", box=None, pad_edge=False)
    for stage, count in expected.evaluations.items():
        table.add_row(stage, f"{count:,}", f"{expected.seconds[stage]:.1f}")
    table.add_row("all", f"{sum(expected.evaluations.values()):,}", f"{sum(expected.seconds.values()):.1f}")
    out.print(table)
    out.print(f"{expected.pictures:,} pictures, about {expected.bytes / 1e6:.1f} MB on disk", highlight=False)


COLOURS = {"issue": "bold red", "passed": "green", "inconclusive": "yellow", "too little": "bold yellow"}


def _print_summary(summary: dict[str, Any], run: Path) -> None:
    verdict = summary["verdict"]
    out.print(f"[{COLOURS.get(verdict, 'bold yellow')}]{verdict}[/] {escape(summary['sentence'])}")
    if summary["detector"]:
        area, control = summary["detector"]["auc"], summary["text_control"]
        text = f"{control['auc']['value']:.2f}" if control else "not applicable"
        out.print(
            f"noise-gap AUC {area['value']:.3f} [{area['low']:.3f}, {area['high']:.3f}]; text alone {text}",
            highlight=False,
            markup=False,
        )
    for stage in summary["states"]:
        if stage["name"] == "calibrate" and stage["reason"]:
            out.print(f"scores not calibrated: {stage['reason']}", highlight=False, markup=False)
    table = Table("code", "state", "severity", "finding", box=None, pad_edge=False)
    for found in summary["findings"]:
        state = Text(found["state"], COLOURS.get(found["state"], "dim"))
        table.add_row(found["code"], state, found["severity"], Text(f"{found['title']}: {found['evidence']}"))
    out.print(table)
    out.print(f"report: {run / 'report.html'}", highlight=False, markup=False)
