"""Tables that are text: CSV with any delimiter, TSV, JSON lines; and plain text, one caption a line."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from unmemorize.core.plain import from_json
from unmemorize.core.storage import opened
from unmemorize.data.items import (
    TWICE,
    Item,
    caption_column,
    caption_of,
    find_name,
    is_twice,
    no_caption_column,
    with_caption,
)

TABLES = (".csv", ".tsv", ".jsonl")
NAMES = ("file_name", "filename")  # columns that name the picture of a row
LARGEST_CELL = 10_000_000  # characters
LONGEST_HEADER = 100_000

SPLIT_CELL = "a cell with a line break in it"


@dataclass(frozen=True)
class Row:
    """A row of a table: its place, as in "row 3", its cells by column, or why it cannot be read.

    Rows are counted from 1 after the header, JSON lines as lines.
    """

    place: str
    cells: dict[str, Any] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True)
class TextPiece:
    """A table, or a file of captions, on its own: captions without pictures."""

    path: Path
    column: str = ""

    def items(self) -> Iterator[Item]:
        """Read it."""
        if self.path.suffix.lower() in TABLES:
            for row in read_rows(self.path, self.column):
                item = Item(row.place, problem=row.problem)
                yield item if row.problem else with_caption(item, caption_of(row.cells, self.column))
        else:
            for number, line in enumerate(_lines(self.path), 1):
                if line.strip():
                    yield with_caption(Item(f"line {number}"), line)


def text_piece(path: Path, column: str) -> TextPiece:
    """The captions in a file.

    Raises:
        UserError: It is a table whose first row has no caption column.
    """
    if path.suffix.lower() in TABLES:
        first = next((row for row in read_rows(path, column) if row.cells), None)
        if first and caption_column(first.cells, column) is None:
            raise no_caption_column(path, first.cells, column)
    return TextPiece(path, column)


def read_rows(path: Path, column: str = "") -> Iterator[Row]:
    """The rows of a .csv, .tsv or .jsonl file; a byte order mark is no part of it.

    What is not UTF-8 becomes surrogates, which no caption may hold: such a row is skipped and not the table.
    """
    if path.suffix.lower() == ".jsonl":
        yield from _json_rows(path)
        return
    delimiter, names = _header(path, column)
    if is_twice(names, [caption_column(names, column), find_name(names, NAMES)]):
        yield Row("header", problem=TWICE)
    elif delimiter == "\t":
        yield from _tab_rows(path)
    else:
        yield from _comma_rows(path, delimiter)


def _lines(path: Path) -> Iterator[str]:
    # The file's own lines, not splitlines(): that breaks a caption at U+2028, U+0085 and six other characters.
    with io.TextIOWrapper(opened(path), encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            yield line.removesuffix("\n").removeprefix("\ufeff")  # a mark stands at the start of each file joined


def _json_rows(path: Path) -> Iterator[Row]:
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            try:
                cells = from_json(line)
            except ValueError:
                cells = None
            place = f"line {number}"
            yield Row(place, cells) if isinstance(cells, dict) else Row(place, problem="not a JSON object")


def _header(path: Path, column: str) -> tuple[str, list[str]]:
    """The delimiter, a tab in a .tsv file, else what gives a caption column, or most columns; and the columns."""
    line = next((line for line in _lines(path) if line.strip()), "")[:LONGEST_HEADER]
    delimiters = "\t" if path.suffix.lower() == ".tsv" else ",;\t|"
    headers = {delimiter: next(csv.reader([line], delimiter=delimiter), []) for delimiter in delimiters}
    best = max(headers, key=lambda found: (caption_column(headers[found], column) is not None, len(headers[found])))
    return best, headers[best]


def _comma_rows(path: Path, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(LARGEST_CELL)
    with io.TextIOWrapper(opened(path), encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        # Strict: a quote that nothing closes, or closes in the middle of a cell, would swallow the rows below.
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        names: list[str] | None = None
        for number in count():
            try:
                cells = next(reader, None)
            except csv.Error as error:
                too_long = "limit" in str(error)
                yield Row(
                    f"row {number}", problem="a cell that is too long" if too_long else "quotes that do not match"
                )
                continue
            if cells is None:
                return
            if names is None:
                names = cells or None
            elif cells:
                yield _row(number, names, cells)


def _row(number: int, names: list[str], cells: list[str]) -> Row:
    if any(cells[len(names) :]):
        return Row(f"row {number}", problem="more cells than the header")
    return Row(f"row {number}", dict(zip(names, cells, strict=False)))


def _tab_rows(path: Path) -> Iterator[Row]:
    """A row a line: quotes are letters, unless they enclose a cell as CSV writes it."""
    lines = _lines(path)
    names = [_unquoted(cell) for cell in next(lines, "").split("\t")]
    opened: Row | None = None  # a row whose last cell begins with a quote that it does not end with
    for number, line in enumerate(lines, 1):
        raw = line.split("\t")
        if opened and raw[0].endswith('"') and not raw[0].startswith('"'):
            yield Row(opened.place, problem=SPLIT_CELL)
            opened = None
            continue
        if opened:
            yield opened
            opened = None
        if line:
            row = _row(number, names, [_unquoted(cell) for cell in raw])
            if raw[-1].startswith('"') and not _is_quoted(raw[-1]):
                opened = row
            else:
                yield row
    if opened:
        yield opened


def _is_quoted(cell: str) -> bool:
    return len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in cell[1:-1].replace('""', "")


def _unquoted(cell: str) -> str:
    return cell[1:-1].replace('""', '"') if _is_quoted(cell) else cell
