"""What reaches the terminal: text is shown as it was written, and nothing in it acts on the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from unmemorize.core.plain import printable, shortened, to_json

LONGEST = 200  # characters of a name or a prompt
LINE = 600  # characters of a line

out = Console()
errors = Console(stderr=True)


def say(text: str, *, to: Console = out, style: str = "") -> None:
    """Print a line: no markup, no colours of its own, no line breaks."""
    line = printable(text)
    if to.is_terminal:
        parts = [shortened(part, LONGEST) for part in line.split(": ")]
        line = shortened(": ".join(parts), LINE)
    to.print(Text(line, style), soft_wrap=True)


def cell(text: object, style: str = "") -> Text:
    """Text of a table's cell."""
    shown = printable(str(text))
    return Text(shortened(shown, LONGEST) if out.is_terminal else shown, style)


def add_row(table: Table, *cells: object) -> None:
    """Add a row of plain text to a table; what is `Text` already keeps its colours."""
    table.add_row(*(value if isinstance(value, Text) else cell(value) for value in cells))


def print_json(value: Any) -> None:
    """Print JSON for programs, whole."""
    print(to_json(value))
