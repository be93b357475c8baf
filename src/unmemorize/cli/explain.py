"""`unmemorize explain`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

from rich.table import Table
from rich.text import Text

from unmemorize.cli.app import EXPLAIN, DryRun, Json, command, option
from unmemorize.cli.checks import check
from unmemorize.cli.terminal import add_row, cell, next_step, out, print_json, say, show_expected, working
from unmemorize.core.errors import UserError
from unmemorize.core.specs import ExplainSpec

COLUMNS = {
    "gradient": "significance",
    "gradient-input": "gradient × input",
    "leave-one-out": "magnitude lost without it",
}


@command(
    EXPLAIN,
    "unmemorize explain testbed 'bento box' --check",
    "unmemorize explain MODEL 'a prompt' --method curvature-map --out maps",
)
def explain(
    spec: ExplainSpec,
    *,
    out_: Annotated[str, option("A new folder for the pictures and maps of some methods.", name="--out")] = "maps",
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Show which words of a prompt carry its memory, or where in its pictures it shows."""
    require_prompt("explain", spec.model, spec.prompt)
    check(spec)

    if dry_run:
        from unmemorize.stages.forecast import forecast_explain

        show_expected(forecast_explain(spec), json)
        return

    from unmemorize.stages.explain import explain as run_explain

    with working():
        result = run_explain(spec, Path(out_))
    if json:
        print_json(result)
    elif "pictures" in result:
        table = Table("seed", "image", "map", box=None, pad_edge=False)
        for row in result["pictures"]:
            add_row(table, *row.values())
        out.print(table, highlight=False)
    else:
        _print_words(result)
        next_step("generate", spec.model, spec.prompt, "--mitigation", "guard", "--out", "pictures")


def require_prompt(command: str, model: str, prompt: str) -> None:
    """Refuse a call without a prompt, or with nothing in it; a single word that is no model is taken for the prompt.

    Raises:
        UserError: There is no prompt.
    """
    if not prompt:
        meant = "testbed PROMPT" if model == "testbed" else f"testbed {shlex.quote(model)}"
        raise UserError(f"{command} takes a model and a prompt: is this meant? unmemorize {command} {meant}")
    if not prompt.strip():
        raise UserError("the prompt is empty: name one with at least a word")


def _print_words(result: dict[str, Any]) -> None:
    words = result["words"]
    most = max([w["significance"] for w in words] + [1e-12])
    shaded = [cell(w["word"], _shade(max(w["significance"], 0.0) / most)) for w in words]
    out.print(Text(" ").join(shaded), "\n")
    lost = "magnitude_lost_without" in words[0]
    column = COLUMNS.get(result["method"], "value")
    table = Table("word", column, *(["magnitude lost without it"] if lost else []), box=None, pad_edge=False)
    for w in words:
        more = [f"{w['magnitude_lost_without']:+.3f}"] if lost else []
        add_row(table, w["word"], f"{w['significance']:.4f}", *more)
    for name, value in result["special"].items():
        add_row(table, cell(f"({name})", "dim"), f"{value:.4f}")
    out.print(table)
    if lost:
        agreement = result["rank_agreement"]
        say("rank agreement: " + ("not applicable" if agreement is None else f"{agreement:.2f}"))


def _shade(share: float) -> str:
    """From white to red, with dark letters that stay readable on either."""
    green_and_blue = round(255 * (1 - 0.75 * share))
    return f"black on rgb(255,{green_and_blue},{green_and_blue})"
