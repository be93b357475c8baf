"""`unmemorize generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from rich.table import Table

from unmemorize.cli.app import REMOVE, DryRun, Json, command, option
from unmemorize.cli.checks import check
from unmemorize.cli.crew import Workers, crew_of
from unmemorize.cli.explain import require_prompt
from unmemorize.cli.terminal import add_row, next_step, out, print_json, show_expected, working
from unmemorize.core.outputs import Output
from unmemorize.core.specs import GenerateSpec


@command(
    REMOVE,
    "unmemorize generate testbed 'bento box' --mitigation guard",
    "unmemorize generate MODEL 'a prompt' --pictures 8 --out pictures",
)
def generate(
    spec: GenerateSpec,
    *,
    out_: Annotated[str, option("A new folder for the pictures.", name="--out")] = "pictures",
    workers: Workers = 1,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Make pictures of a prompt, with a mitigation that acts on memorized ones if asked."""
    require_prompt("generate", spec.model, spec.prompt)
    check(spec, *([] if dry_run else [Output("--out", Path(out_), "new")]))

    if dry_run:
        from unmemorize.stages.forecast import forecast_generate

        show_expected(forecast_generate(spec), json)
        return

    from unmemorize.stages.generate import generate as run_generate

    with working() as progress, crew_of(workers, "local") as crew:
        rows = run_generate(spec, Path(out_), progress, crew)
    if json:
        print_json({"pictures": rows})
        return
    table = Table(*rows[0], box=None, pad_edge=False)
    for row in rows:
        add_row(table, *(f"{v:.3f}" if isinstance(v, float) else v for v in row.values()))
    out.print(table, highlight=False)
    next_step("explain", spec.model, spec.prompt)
