"""What reaches the terminal: text is shown as it was written, and nothing in it acts on the terminal."""

from __future__ import annotations

import codecs
import io
import json
import logging
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from unmemorize.core.plain import printable, shortened, to_json
from unmemorize.core.storage import by_name

if TYPE_CHECKING:
    from unmemorize.stages.forecast import Expected, Memory

SCHEMA_VERSION = 1  # of what --json prints
LONGEST = 200  # characters of a name or a prompt
LINE = 600  # characters of a line
INTERRUPTED = 130  # what a shell gives a command that Ctrl-C stopped
EVERY = 60.0  # seconds between two lines of progress in a file

out = Console()
errors = Console(stderr=True)


class _Log(logging.Handler):
    """Says what is logged, as everything else is said: names of files in it act on nothing."""

    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record), to=errors, style="yellow")


def _escaped(error: UnicodeError) -> tuple[str, int]:
    r"""A character that a stream's encoding lacks, as `\u00e9`: JSON reads that as the character."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


def open_streams() -> None:
    """Let every line be printed, in any locale, and what is logged be printed like the rest."""
    codecs.register_error("escaped", _escaped)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="escaped")
    logging.lastResort = _Log(logging.WARNING)


def say(text: str, *, to: Console = out, style: str = "") -> None:
    """Print a line: no markup, no colours of its own, no line breaks."""
    line = printable(by_name(text))
    if to.is_terminal:
        line = _cut(line)
    to.print(Text(line, style), soft_wrap=True)


def complain(text: str) -> None:
    """Print a mistake as one line on the error stream, with what it quotes shortened."""
    errors.print(Text(f"error: {_cut(printable(by_name(text)))}", "red"), soft_wrap=True)


def next_step(*words: str) -> None:
    """Print, as the last line, what to type next."""
    say(f"next: unmemorize {shlex.join(words)}", style="bold")


def cell(text: object, style: str = "") -> Text:
    """Text of a table's cell."""
    shown = printable(str(text))
    return Text(shortened(shown, LONGEST) if out.is_terminal else shown, style)


def add_row(table: Table, *cells: object) -> None:
    """Add a row of plain text to a table; what is `Text` already keeps its colours."""
    table.add_row(*(value if isinstance(value, Text) else cell(value) for value in cells))


def print_json(value: dict[str, Any]) -> None:
    """Print JSON for programs, whole: an object that says which version of its form it has."""
    print(by_name(to_json({"schema_version": SCHEMA_VERSION} | value)))


def print_forecast(evaluations: dict[str, int], seconds: dict[str, float], memory: Memory) -> None:
    """Print what a command is expected to take, by stage and in all, and what the model takes."""
    table = Table("stage", "evaluations", "seconds", box=None, pad_edge=False)
    for stage, count in evaluations.items():
        add_row(table, stage, f"{count:,}", f"{seconds[stage]:.1f}")
    if len(evaluations) > 1:
        add_row(table, "all", f"{sum(evaluations.values()):,}", f"{sum(seconds.values()):.1f}")
    out.print(table)
    say(
        f"memory, from the weights' shapes and without activations: {memory.float32:.2g} GB in float32, "
        f"{memory.half:.2g} GB in half precision; training all of the denoiser holds {memory.training:.2g} GB or more"
    )


def show_expected(expected: Expected, as_json: bool) -> None:
    """Print a forecast, as JSON or for people."""
    if as_json:
        print_json(asdict(expected))
    else:
        print_forecast(expected.evaluations, expected.seconds, expected.memory)


@contextmanager
def working(folder: Path | None = None) -> Iterator[Callable[[str, int, int], None]]:
    """A function (stage, done, total) that shows progress on the error stream while a command works.

    Args:
        folder: Where what is done is kept, which Ctrl-C says before the command ends.
    """
    try:
        with _bars() if errors.is_terminal else nullcontext(_lines()) as progress:
            yield progress
    except KeyboardInterrupt:
        again = shlex.join(["unmemorize", *sys.argv[1:]])
        what = f"what is done is kept in {folder}; this goes on: {again}" if folder else "nothing is kept"
        say(f"stopped: {what}", to=errors, style="yellow")
        sys.exit(INTERRUPTED)


@contextmanager
def _bars() -> Iterator[Callable[[str, int, int], None]]:
    columns = (
        TextColumn("{task.description:>9}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=errors) as shown:
        tasks = {}

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = shown.add_task(printable(stage), total=total)
            shown.update(tasks[stage], completed=done)

        yield progress


def _lines(now: Callable[[], float] = time.monotonic) -> Callable[[str, int, int], None]:
    """A function that says where each stage is: when it starts, once a minute, and when it ends."""
    last: dict[str, float] = {}

    def progress(stage: str, done: int, total: int) -> None:
        if stage not in last or done >= total or now() - last[stage] >= EVERY:
            last[stage] = now()
            say(f"{stage}: {done:,} of {total:,}", to=errors)

    return progress


def _cut(line: str) -> str:
    parts = [shortened(part, LONGEST) for part in line.split(": ")]
    return shortened(": ".join(parts), LINE)
