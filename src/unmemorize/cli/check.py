"""`unmemorize check`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

from rich.table import Table

from unmemorize.cli.app import FIND, DryRun, Json, command, option
from unmemorize.cli.checks import check as check_inputs
from unmemorize.cli.terminal import add_row, next_step, print_json, say, show_expected, working
from unmemorize.cli.terminal import out as console
from unmemorize.core.errors import UserError
from unmemorize.core.outputs import Output
from unmemorize.core.pictures import ENDINGS
from unmemorize.core.specs import CheckSpec


@command(FIND, "unmemorize check", "unmemorize check MODEL picture.png --controls pictures/ --out page.html")
def check(
    spec: CheckSpec,
    *,
    out: Annotated[str, option("Write a page to this file.")] = "",
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Say whether a model treats pictures unlike others of their kind: are they in there?"""
    if spec.model.lower().endswith(ENDINGS):
        meant = shlex.join(["testbed", spec.model, *spec.picture])
        raise UserError(f"check takes a model and pictures: is this meant? unmemorize check {meant}")
    for path in spec.picture:
        _require_pictures(path)
    check_inputs(spec, *([Output("--out", Path(out), "file")] if out and not dry_run else []))

    if dry_run:
        from unmemorize.stages.forecast import forecast_check

        show_expected(forecast_check(spec), json)
        return

    from unmemorize.stages.check import check as run_check

    with working() as progress:
        result = run_check(spec, progress, Path(out) if out else None)
    if json:
        print_json(result)
        return
    _print_table(result)
    if out:
        say(f"page: {out}")
    options: list[str] = []
    if len(spec.picture) == 1 and Path(spec.picture[0]).is_dir():
        options += ["--targets", spec.picture[0]]
    if spec.controls:
        options += ["--controls", spec.controls]
    next_step("attack", spec.model, *options)


def _require_pictures(path: str) -> None:
    """Refuse what is no picture and no folder of pictures."""
    from unmemorize.data.captions import pieces

    pieces(Path(path))


def _print_table(result: dict[str, Any]) -> None:
    table = Table("picture", "method", "score", "p", "p (as simple)", "q", box=None, pad_edge=False)
    for row in result["pictures"]:
        for name, test in row["methods"].items():
            values = [f"{test[key]:.3f}" for key in ("p_value", "p_value_matched", "q_value")]
            add_row(table, row["picture"], name, f"{test['score']:.4g}", *values)
    console.print(table)
    for name, p in result["set"].items():
        say(f"{name}: all {len(result['pictures'])} pictures as a set, p = {p:.2g}")
    captions = "with" if result["captions"] else "without"
    say(f"{result['controls']} controls, {captions} captions, {result['evaluations']} denoiser evaluations")
