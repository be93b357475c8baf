"""`unmemorize explain`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from unmemorize.cli.app import Json, Model, Steps, Window, app
from unmemorize.cli.terminal import add_row, cell, errors, out, print_json, say
from unmemorize.core.specs import ExplainSpec


class Method(StrEnum):
    """How words are explained."""

    gradient = "gradient"
    gradient_input = "gradient-input"
    leave_one_out = "leave-one-out"


COLUMNS = {
    Method.gradient: "significance",
    Method.gradient_input: "gradient × input",
    Method.leave_one_out: "magnitude lost without it",
}


class Pool(StrEnum):
    """How the tokens of a word are put together."""

    sum = "sum"
    max = "max"
    mean = "mean"


@app.command()
def explain(
    model: Model,
    prompt: Annotated[str, typer.Argument(help="The prompt.")],
    method: Annotated[
        Method,
        typer.Option(help="gradient at the text encoder's output, gradient × input at its input, or leave-one-out."),
    ] = Method.gradient,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds.")] = 4,
    window: Window = "1",
    steps: Steps = 0,
    pool: Annotated[Pool, typer.Option(help="How the tokens of a word are put together.")] = Pool.sum,
    check: Annotated[bool, typer.Option("--check", help="Also leave out each word: a second opinion.")] = False,
    as_json: Json = False,
) -> None:
    """Show which words of a prompt carry its memory."""
    from unmemorize.jobs.explain import explain as run_explain

    spec = ExplainSpec(
        model=model,
        seeds=seeds,
        steps=steps,
        window=window,
        pool=pool.value,
        method=method.value,
        check=check,
    )
    with errors.status("computing"):
        found = run_explain(spec, prompt)
    if as_json:
        print_json(found)
    else:
        _print_words(found)


def _print_words(found: dict[str, Any]) -> None:
    words = found["words"]
    most = max([w["significance"] for w in words] + [1e-12])
    shaded = [cell(w["word"], _shade(max(w["significance"], 0.0) / most)) for w in words]
    out.print(Text(" ").join(shaded), "\n")
    lost = "magnitude_lost_without" in words[0]
    column = COLUMNS[Method(found["method"])]
    table = Table("word", column, *(["magnitude lost without it"] if lost else []), box=None, pad_edge=False)
    for w in words:
        more = [f"{w['magnitude_lost_without']:+.3f}"] if lost else []
        add_row(table, w["word"], f"{w['significance']:.4f}", *more)
    for name, value in found["special"].items():
        add_row(table, cell(f"({name})", "dim"), f"{value:.4f}")
    out.print(table)
    if lost:
        agreement = found["rank_agreement"]
        say("rank agreement: " + ("not applicable" if agreement is None else f"{agreement:.2f}"))


def _shade(share: float) -> str:
    """From white to red, with dark letters that stay readable on either."""
    rest = round(255 * (1 - 0.75 * share))
    return f"black on rgb(255,{rest},{rest})"
