"""`unmemorize attack`: does the picture come back?"""

from __future__ import annotations

from typing import Any

from rich.table import Table

from unmemorize.cli.app import PROVE, DryRun, Json, Run, command
from unmemorize.cli.checks import check, part_named
from unmemorize.cli.crew import Launcher, Portion, Workers, crew_of
from unmemorize.cli.terminal import add_row, next_step, out, print_json, say, show_expected, working
from unmemorize.core.groups import LABELS, UNSEEN
from unmemorize.core.outputs import Output
from unmemorize.core.run import default_run
from unmemorize.core.specs import AttackSpec

KEYS = ("copy_rate", "original_copy_rate", "control_copy_rate", "search_budget", "evaluations", "steps")


@command(
    PROVE,
    "unmemorize attack testbed --limit 3 --run runs/attack",
    "unmemorize attack MODEL --targets memorized/ --controls others/ --mitigation edit.safetensors",
)
def attack(
    spec: AttackSpec,
    *,
    run: Run = "",
    part: Portion = "",
    workers: Workers = 1,
    launcher: Launcher = "local",
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Search for what brings training pictures back, under a mitigation or without, always beside controls."""
    portion = part_named(part)
    folder = default_run(run, spec.model, "attack")

    check(spec, *([] if dry_run else [Output("--run", folder, "run")]))

    if dry_run:
        from unmemorize.stages.forecast import forecast_attack

        show_expected(forecast_attack(spec), json)
        return

    from unmemorize.stages.attack import run_attack

    with working(folder) as progress, crew_of(workers, launcher, portion) as crew:
        summary = run_attack(spec, folder, progress, crew)
    if json:
        print_json({key: summary[key] for key in KEYS})
        return
    _print(summary)
    say(f"embeddings, pictures and numbers: {folder}")
    given = ["--targets", spec.targets, "--controls", spec.controls] if spec.targets else []
    if summary["copy_rate"]:
        next_step("mitigate", spec.model, *given, "--out", "cured")
    else:
        next_step("attack", spec.model, *given, "--method", "adaptive", "--run", f"{folder}-adaptive")


def _print(summary: dict[str, Any]) -> None:
    table = Table("updates", *(f"{label}: copy rate" for label in LABELS.values()), "similarity", "moved / start")
    for rows in zip(*(summary["curve"][group] for group in LABELS), strict=True):
        rates = [_rate(row["copies"]) for row in rows]
        similarity = " / ".join(f"{row['similarity']:.2f}" for row in rows)
        moved = " / ".join(f"{row['relative']:.2f}" for row in rows)
        add_row(table, rows[0]["steps"], *rates, similarity, moved)
    out.print(table)
    for group, label in LABELS.items():
        original, work = summary["original"][group], summary["work"][group]
        median = "–" if work["median"] is None else f"{work['median']:,.0f}"
        mirrored = summary["verdicts"][group]["mirrored"]
        say(
            f"{label}: {summary['pictures'][group]} pictures, own prompts copy {_rate(original)}; "
            f"evaluations to the first copy {median} (median), never copied {work['never']}"
            f"{f'; {mirrored:.0%} of the last pictures are mirrored copies' if mirrored else ''}"
        )
    say(f"{LABELS[UNSEEN]}: {summary['unseen_from']}")
    say(summary["sentence"])


def _rate(rate: dict[str, Any] | None) -> str:
    return "–" if rate is None else f"{rate['value']:.2f} [{rate['low']:.2f}, {rate['high']:.2f}]"
