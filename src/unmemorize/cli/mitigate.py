"""`unmemorize mitigate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from rich.table import Table

from unmemorize.cli.app import REMOVE, DryRun, Json, command, option
from unmemorize.cli.checks import check
from unmemorize.cli.locate import against
from unmemorize.cli.terminal import add_row, next_step, out, print_json, say, show_expected, working
from unmemorize.core.outputs import Output
from unmemorize.core.specs import MitigateSpec

RATES = ("copy_rate_before", "copy_rate_after", "attacked_copy_rate_after")


@command(
    REMOVE,
    "unmemorize mitigate testbed --out cured",
    "unmemorize mitigate MODEL --targets memorized --controls ordinary --out cured",
)
def mitigate(
    spec: MitigateSpec,
    *,
    folder: Annotated[str, option("A new folder for the model.", name="--out")],
    run: Annotated[str, option("Folder of checkpoints and measurements; OUT.run by default.")] = "",
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Fine-tune memorized pictures out of a model and test what an attack still brings back."""
    checkpoints = Path(run or f"{Path(folder)}.run")
    outputs = [Output("--out", Path(folder), "new"), Output("--run", checkpoints, "run")]
    check(spec, *([] if dry_run else outputs))

    if dry_run:
        from unmemorize.stages.forecast import forecast_mitigate

        show_expected(forecast_mitigate(spec), json)
        return

    from unmemorize.stages.unlearn import mitigate as run_mitigate

    with working(checkpoints) as progress:
        results = run_mitigate(spec, Path(folder), checkpoints, progress)
    if json:
        shown = {name: results[name][0] for name in RATES}
        print_json(shown | {name: results[name] for name in ("quality", "evaluations")})
    else:
        _show(results, folder)
        given = against(folder) if not spec.targets else ("--targets", spec.targets, "--controls", spec.controls)
        next_step("attack", folder, *given, "--method", "adaptive")


def _show(results: dict[str, Any], folder: str) -> None:
    table = Table("copies", "share", "95% interval", box=None, pad_edge=False)
    for name in RATES:
        value, low, high = results[name]
        add_row(table, name.replace("_", " "), f"{value:.3f}", f"{low:.3f} to {high:.3f}")
    out.print(table, highlight=False)
    cost = f"{results['updates']} updates, {results['evaluations']} denoiser evaluations, {results['seconds']} seconds"
    say(cost)
    say(f"model: {folder}")
