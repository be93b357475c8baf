"""`unmemorize triggers`: which words make a model copy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from unmemorize.cli.app import (
    Column,
    Guidance,
    Json,
    Model,
    Pictures,
    Prompts,
    Recipe,
    References,
    Sscd,
    Steps,
    app,
    bars,
)
from unmemorize.cli.terminal import add_row, out, print_json, say
from unmemorize.core.outputs import Output, check_outputs
from unmemorize.core.specs import TriggerSpec

SHOWN = 20


@app.command()
def triggers(
    model: Model = "testbed",
    prompts: Prompts = "",
    column: Column = "",
    references: References = "",
    run: Annotated[str, typer.Option(help="Run directory, where a killed probe continues.")] = "",
    limit: Annotated[int, typer.Option(min=0, help="How many of the prompts to probe, evenly spread; 0 for all.")] = 20,
    repeats: Annotated[int, typer.Option(min=1, max=20, help="How often each word is said at most.")] = 3,
    pictures: Pictures = 2,
    steps: Steps = 0,
    guidance: Guidance = None,
    sscd: Sscd = "",
    recipe: Recipe = "sscd-320",
    as_json: Json = False,
) -> None:
    """Take prompts apart and find the words that make the model copy."""
    folder = Path(run or Path("runs") / f"triggers-{Path(model).name}")
    check_outputs([Output("--run", folder, "run")], [model, prompts, references, sscd])

    from unmemorize.jobs.triggers import probe

    spec = TriggerSpec(
        model=model,
        prompts=prompts,
        column=column,
        references=references,
        limit=limit,
        repeats=repeats,
        pictures=pictures,
        steps=steps,
        guidance=guidance,
        sscd=sscd,
        recipe=recipe,
    )
    with bars() as progress:
        result = probe(spec, folder, progress)
    if as_json:
        print_json(result | {"run": str(folder)})
        return
    _print(result)
    say(f"every text and its outcome: {folder}")


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


def _rate(rate: dict[str, Any] | None) -> str:
    return "–" if rate is None else f"{rate['value']:.2f} [{rate['low']:.2f}, {rate['high']:.2f}]"
