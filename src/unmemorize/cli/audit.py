"""`unmemorize audit`, `unmemorize report` and `unmemorize compare`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

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
from unmemorize.cli.terminal import add_row, cell, errors, out, print_json, say
from unmemorize.core.errors import UserError
from unmemorize.core.outputs import Output, check_outputs, is_stdout
from unmemorize.core.plain import printable
from unmemorize.core.specs import AuditSpec

if TYPE_CHECKING:
    from unmemorize.audit import Forecast
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
    references: References = "",
    ordinary: Ordinary = "",
    held_out: Annotated[str, typer.Option(help="Folder of pictures like these that were not trained on.")] = "",
    run: Annotated[str, typer.Option(help="Run directory, where a killed run continues; runs/MODEL by default.")] = "",
    plan: Annotated[Plan, typer.Option(help="Defaults for how much is generated and explained.")] = Plan.quick,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what to expect, and do nothing.")] = False,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds per prompt for the score.")] = 4,
    pictures: Annotated[int | None, typer.Option(min=1, help="Pictures generated per chosen prompt.")] = None,
    generate: Annotated[int | None, typer.Option(min=0, help="How many prompts to generate; 0 for all.")] = None,
    explain: Annotated[int | None, typer.Option(min=0, help="How many prompts to explain; 0 for all.")] = None,
    mitigation: Annotated[
        list[str] | None,
        typer.Option(help="guard, wanda, nemo or the folder of a model mitigated before; repeatable; none for none."),
    ] = None,
    sparsity: Annotated[float, typer.Option(min=0, max=1, help="Share of each row Wanda may take; 0: default.")] = 0,
    attack: Annotated[int | None, typer.Option(min=0, help="How many copied pictures to attack; 0 for all.")] = None,
    attack_updates: Annotated[int | None, typer.Option(min=0, help="Updates of an attack; 0 for no attack.")] = None,
    steps: Steps = 0,
    guidance: Guidance = None,
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
    folder = Path(run or Path("runs") / Path(model).name)
    if not dry_run:
        read = [model, prompts, references, ordinary, held_out, sscd, *(mitigation or ())]
        _check_outputs(folder, junit, as_json, read)

    from unmemorize.audit import forecast, run_audit

    asked: dict[str, Any] = {
        "pictures": pictures,
        "generate": generate,
        "explain": explain,
        "mitigation": None if mitigation is None else tuple(mitigation),
        "attack": attack,
        "attack_updates": attack_updates,
        "bound": bound,
    }
    spec = AuditSpec(
        model=model,
        prompts=prompts,
        column=column,
        references=references,
        ordinary=ordinary,
        held_out=held_out,
        plan=plan.value,
        seeds=seeds,
        steps=steps,
        guidance=guidance,
        sscd=sscd,
        recipe=recipe,
        sparsity=sparsity,
        **{key: value for key, value in asked.items() if value is not None},
    )
    if dry_run:
        _print_forecast(forecast(spec), as_json)
        return
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

    say(str(rebuild_report(Path(run), evidence=evidence.value)))


@app.command()
def compare(
    run_a: Annotated[str, typer.Argument(help="Run directory, such as before a change.")],
    run_b: Annotated[str, typer.Argument(help="Run directory, such as after it.")],
    out: Annotated[str, typer.Option(help="The page to write.")] = "compare.html",
    evidence: Shown = Evidence.full,
) -> None:
    """Put two audits on one page, paired by prompt."""
    if not is_stdout(out):
        check_outputs([Output("--out", Path(out), "file")], [run_a, run_b])

    from unmemorize.report.compare import build_comparison

    build_comparison(Path(run_a), Path(run_b), Path(out), evidence=evidence.value)
    if not is_stdout(out):
        say(out)


def _check_outputs(run: Path, junit: str, as_json: bool, read: Sequence[str]) -> None:
    """Before torch is imported: the run directory, and the file for the build server."""
    outputs = [Output("--run", run, "run")]
    if is_stdout(junit) and as_json:
        raise UserError("--junit - and --json both print: name a file with --junit")
    if junit and not is_stdout(junit):
        outputs.append(Output("--junit", Path(junit), "file"))
    check_outputs(outputs, read)


def _announce(spec: AuditSpec) -> None:
    """A full plan says what it will take before it takes it."""
    from unmemorize.audit import forecast

    if spec.plan == "full":
        expected = forecast(spec)
        minutes = sum(expected.seconds.values()) / 60
        say(f"about {minutes:.0f} min: {sum(expected.evaluations.values()):,} evaluations", to=errors)


def _finish(summary: dict[str, Any], run: Path, conditions: Sequence[Condition], junit: str, as_json: bool) -> None:
    """Print the outcome, write it for the build server, and exit by its conditions."""
    from unmemorize.verdict.junit import write_junit

    if junit:
        write_junit(Path(junit), summary, conditions)
    if as_json:
        print_json(_verdict(summary, run))
    elif not is_stdout(junit):
        _print_summary(summary, run)
    met = [condition for condition in conditions if condition.met(summary["measures"])]
    for condition in met:
        say(f"fail-on {condition.explain(summary['measures'])}", to=errors, style="red")
    if met:
        raise typer.Exit(MET)


def _verdict(summary: dict[str, Any], run: Path) -> dict[str, Any]:
    findings = [{key: found[key] for key in ("code", "severity", "state", "count")} for found in summary["findings"]]
    return {"verdict": summary["verdict"], "findings": findings, "run": str(run)}


def _print_forecast(expected: Forecast, as_json: bool) -> None:
    if as_json:
        print_json(asdict(expected))
        return
    table = Table("stage", "evaluations", "seconds", box=None, pad_edge=False)
    for stage, count in expected.evaluations.items():
        add_row(table, stage, f"{count:,}", f"{expected.seconds[stage]:.1f}")
    add_row(table, "all", f"{sum(expected.evaluations.values()):,}", f"{sum(expected.seconds.values()):.1f}")
    out.print(table)
    say(f"{expected.pictures:,} pictures, about {expected.bytes / 1e6:.1f} MB on disk")


COLOURS = {"issue": "bold red", "passed": "green", "inconclusive": "yellow", "too little": "bold yellow"}


def _print_summary(summary: dict[str, Any], run: Path) -> None:
    verdict = cell(summary["verdict"], COLOURS.get(summary["verdict"], "bold yellow"))
    out.print(Text.assemble(verdict, " ", printable(summary["sentence"])))
    if summary["detector"]:
        area, control = summary["detector"]["auc"], summary["text_control"]
        text = f"{control['auc']['value']:.2f}" if control else "not applicable"
        say(f"noise-gap AUC {area['value']:.3f} [{area['low']:.3f}, {area['high']:.3f}]; text alone {text}")
    for stage in summary["states"]:
        if stage["name"] == "calibrate" and stage["reason"]:
            say(f"scores not calibrated: {stage['reason']}")
    table = Table("code", "state", "severity", "finding", box=None, pad_edge=False)
    for found in summary["findings"]:
        state = cell(found["state"], COLOURS.get(found["state"], "dim"))
        finding = Text(printable(f"{found['title']}: {found['evidence']}"))
        add_row(table, found["code"], state, found["severity"], finding)
    out.print(table)
    say(f"report: {run / 'report.html'}")
