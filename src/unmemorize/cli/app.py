"""What all commands share: the application, the terminal, progress bars, common options."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from unmemorize import __version__
from unmemorize.cli.terminal import errors
from unmemorize.core.plain import printable

app = typer.Typer(
    help="Find what a text-to-image diffusion model has memorized.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text.")]
Model = Annotated[str, typer.Argument(help="testbed, testbed-twin, a pipeline folder, or a hub id.")]
Prompts = Annotated[str, typer.Option(help="File of prompts: txt, csv, tsv, jsonl or parquet.")]
References = Annotated[str, typer.Option(help="Folder of training pictures to compare with.")]
Ordinary = Annotated[str, typer.Option(help="File of prompts like these that are known to be ordinary: not memorized.")]
Targets = Annotated[str, typer.Option(help="Folder of pictures with captions to extract or to forget.")]
Controls = Annotated[str, typer.Option(help="Folder of pictures with captions that are known not to be memorized.")]
Pictures = Annotated[int, typer.Option(min=1, help="Pictures a prompt.")]
Window = Annotated[str, typer.Option(help="Sampling steps to read: the first N, or FIRST:LAST.")]
Steps = Annotated[int, typer.Option(min=0, max=1000, help="Sampling steps; 0: the model's own, 16 for the testbed.")]
Guidance = Annotated[float | None, typer.Option(min=0, help="Guidance scale; the model's own by default.")]
Sscd = Annotated[str, typer.Option(help="SSCD file, .onnx or TorchScript (which runs the code inside it).")]
Recipe = Annotated[str, typer.Option(help="SSCD recipe.")]
Column = Annotated[str, typer.Option(help="Caption column, where its name is unusual.")]


@contextmanager
def bars() -> Iterator[Callable[[str, int, int], None]]:
    """A function (stage, done, total) that shows one bar a stage on the error stream."""
    columns = (
        TextColumn("{task.description:>9}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, TimeRemainingColumn(), console=errors) as shown:
        tasks = {}

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = shown.add_task(printable(stage), total=total)
            shown.update(tasks[stage], completed=done)

        yield progress


def _version(show: bool) -> None:
    if show:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass
