"""`unmemorize audit`, `unmemorize report` and `unmemorize compare`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from rich.table import Table
from rich.text import Text

from unmemorize.cli.app import FIND, PROVE, TESTBED, DryRun, Json, Run, command, option
from unmemorize.cli.checks import check
from unmemorize.cli.crew import Launcher, Workers, crew_of
from unmemorize.cli.terminal import add_row, cell, errors, next_step, out, print_forecast, print_json, say, working
from unmemorize.core.errors import UserError
from unmemorize.core.outputs import Output, check_outputs, is_stdout
from unmemorize.core.plain import printable
from unmemorize.core.run import default_run, on_disk
from unmemorize.core.specs import AuditSpec

if TYPE_CHECKING:
    from unmemorize.audit import Forecast
    from unmemorize.verdict.conditions import Condition

MET = 1  # exit code where a condition of --fail-on is met

Evidence = Annotated[
    Literal["full", "thumb", "none"], option("What the page shows of training pictures and their copies.")
]
FailOn = Annotated[tuple[str, ...], option("Exit 1 if this holds, such as 'copied_prompts > 0'; repeatable.")]


@command(
    FIND,
    "unmemorize audit",
    "unmemorize audit MODEL --prompts captions.csv --references training-pictures/ --run runs/mine",
)
def audit(
    spec: AuditSpec,
    *,
    run: Run = "",
    workers: Workers = 1,
    launcher: Launcher = "local",
    evidence: Evidence = "full",
    fail_on: FailOn = (),
    junit: Annotated[str, option("Write the findings as JUnit XML to this file.")] = "",
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Score prompts, generate, compare with the training pictures, explain, mitigate, attack, and write a report."""
    folder = default_run(run, spec.model)
    check(spec, *([] if dry_run else _outputs(folder, junit, json)))

    # Imported here, as everywhere in the commands, so that --help and mistakes answer at once.
    from unmemorize.verdict.conditions import parse_conditions

    conditions = parse_conditions(fail_on)

    from unmemorize.audit import forecast, run_audit

    if dry_run:
        _print_forecast(forecast(spec), json)
        return
    _announce(spec)
    with working(folder) as progress, crew_of(workers, launcher) as crew:
        summary = run_audit(spec, folder, progress, evidence=evidence, crew=crew)
    _finish(summary, folder, conditions, junit, json)


@command(TESTBED, "unmemorize report runs/mine", "unmemorize report runs/mine --evidence none")
def report(
    run: Annotated[str, option("Run directory of an audit.")], *, evidence: Evidence = "full", json: Json = False
) -> None:
    """Rebuild a run's report."""
    from unmemorize.report.rebuild import rebuild_report

    page = rebuild_report(on_disk(Path(run)), evidence=evidence)
    if json:
        print_json({"page": str(page)})
        return
    say(str(page))
    next_step("export", run, "--out", "copied")


@command(PROVE, "unmemorize compare runs/before runs/after", "unmemorize compare runs/a runs/b --out both.html")
def compare(
    run_a: Annotated[str, option("Run directory, such as before a change.")],
    run_b: Annotated[str, option("Run directory, such as after it.")],
    *,
    out: Annotated[str, option("The page to write.")] = "compare.html",
    evidence: Evidence = "full",
    json: Json = False,
) -> None:
    """Put two audits on one page, paired by prompt."""
    if json and is_stdout(out):
        raise UserError("--out - and --json both print: name a file with --out")
    if not is_stdout(out):
        check_outputs([Output("--out", Path(out), "file")], [run_a, run_b])

    from unmemorize.report.compare import build_comparison

    build_comparison(on_disk(Path(run_a)), on_disk(Path(run_b)), Path(out), evidence=evidence)
    if json:
        print_json({"page": out})
    elif not is_stdout(out):
        say(out)
        next_step("export", run_b, "--out", "copied")


def _outputs(run: Path, junit: str, as_json: bool) -> list[Output]:
    """The run directory, and the file for the build server."""
    if is_stdout(junit) and as_json:
        raise UserError("--junit - and --json both print: name a file with --junit")
    outputs = [Output("--run", run, "run")]
    if junit and not is_stdout(junit):
        outputs.append(Output("--junit", Path(junit), "file"))
    return outputs


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
        if summary["copied_prompts"]:
            next_step("export", str(run), "--out", "copied")
        else:
            next_step("report", str(run), "--evidence", "none")
    met = [condition for condition in conditions if condition.met(summary["measures"])]
    for condition in met:
        say(f"fail-on {condition.explain(summary['measures'])}", to=errors, style="red")
    if met:
        sys.exit(MET)


def _verdict(summary: dict[str, Any], run: Path) -> dict[str, Any]:
    keys = ("code", "severity", "state", "count")
    findings = [{key: finding[key] for key in keys} for finding in summary["findings"]]
    return {"verdict": summary["verdict"], "findings": findings, "run": str(run)}


def _print_forecast(expected: Forecast, as_json: bool) -> None:
    if as_json:
        print_json(asdict(expected))
        return
    print_forecast(expected.evaluations, expected.seconds, expected.memory)
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
    for finding in summary["findings"]:
        state = cell(finding["state"], COLOURS.get(finding["state"], "dim"))
        shown = Text(printable(f"{finding['title']}: {finding['evidence']}"))
        add_row(table, finding["code"], state, finding["severity"], shown)
    out.print(table)
    say(f"report: {run / 'report.html'}")
