"""`unmemorize triggers`: which words make a model copy."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from unmemorize.cli.app import EXPLAIN, DryRun, Json, Run, command
from unmemorize.cli.checks import check, part_named
from unmemorize.cli.crew import Launcher, Portion, Workers, crew_of
from unmemorize.cli.terminal import add_row, next_step, out, print_json, say, show_expected, working
from unmemorize.core.outputs import Output
from unmemorize.core.run import default_run
from unmemorize.core.specs import TriggerSpec

SHOWN = 20


@command(
    EXPLAIN,
    "unmemorize triggers testbed --limit 5",
    "unmemorize triggers MODEL --prompts prompts.csv --references training-pictures/",
)
def triggers(
    spec: TriggerSpec,
    *,
    run: Run = "",
    part: Portion = "",
    workers: Workers = 1,
    launcher: Launcher = "local",
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Take prompts apart and find the words that make the model copy."""
    portion = part_named(part)
    folder = default_run(run, spec.model, "triggers")
    check(spec, *([] if dry_run else [Output("--run", folder, "run")]))

    if dry_run:
        from unmemorize.stages.forecast import forecast_triggers

        show_expected(forecast_triggers(spec), json)
        return

    from unmemorize.stages.triggers import probe

    with working(folder) as progress, crew_of(workers, launcher, portion) as crew:
        result = probe(spec, folder, progress, crew)
    if json:
        print_json(result | {"run": str(folder)})
        return
    _print(result)
    say(f"every text and its outcome: {folder}")
    words = result["triggers"] or result["words"]
    next_step("explain", spec.model, words[0]["word"])


def _print(result: dict[str, Any]) -> None:
    table = Table("word", "prompts", "copy rate with it", "without it", "alone", "moved", "random words", "trigger")
    for word in result["words"][:SHOWN]:
        rates = [_rate(word[name]) for name in ("holding", "without", "alone", "moved", "random")]
        add_row(table, word["word"], word["prompts"], *rates, "yes" if word["trigger"] else "")
    out.print(table)
    left = len(result["words"]) - SHOWN
    rule = result["rule"]
    say(
        f"{len(result['triggers'])} of {len(result['words'])} words are triggers: with them more than "
        f"{rule['share']:.0%} of pictures are copies, without them less than {rule['margin']:.0%}"
        f"{f'; {left} words not shown' if left > 0 else ''}; "
        f"{result['prompts']} of {result['prompts_given']} prompts probed, {result['texts']:,} texts"
    )
    if result["mirrored"]:
        say(f"{result['mirrored']} of {result['copies']} copies are mirrored")
    if result["criterion_errors"]:
        say(result["criterion_errors"])


def _rate(rate: dict[str, Any] | None) -> str:
    return "–" if rate is None else f"{rate['value']:.2f} [{rate['low']:.2f}, {rate['high']:.2f}]"
