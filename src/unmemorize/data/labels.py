"""Prompts of which a user knows whether they are memorized."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unmemorize.core.errors import UserError
from unmemorize.core.files import require_file
from unmemorize.data.items import caption_column, find_name, no_caption_column
from unmemorize.data.source import Prompt
from unmemorize.data.texts import TABLES, read_rows

WORDS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False, "": None}
LABELS = ("memorized", "label")  # columns, the first of them that a file has


def read_labelled(path: Path, column: str = "") -> list[Prompt]:
    """Read prompts with labels from csv (any delimiter), tsv or jsonl; equal prompts are read once.

    The column `memorized` (or `label`) holds 1 or 0, true or false, yes or no; a prompt where it is empty belongs to
    neither class. `kind`, `copies` and `cluster` may stand beside it.

    Args:
        path: The file.
        column: The prompts' column; by default the first of prompt, caption and text that the file has.

    Raises:
        UserError: The file cannot be read, a row has no prompt or no label, or one of the classes is missing.
    """
    require_file(path, "name a .csv, .tsv or .jsonl file of prompts with a column named memorized")
    if path.suffix.lower() not in TABLES:
        raise UserError(f"{path}: labels stand in a table: name a .csv, .tsv or .jsonl file")
    prompts: dict[str, Prompt] = {}
    for row in read_rows(path, column):
        if row.problem:
            raise UserError(f"{path}, {row.place}: {row.problem}: correct or delete the row")
        prompt = _prompt(f"{path}, {row.place}", f"{len(prompts):05d}", row.cells, column)
        before = prompts.setdefault(prompt.text, prompt)
        if before.memorable != prompt.memorable:
            raise UserError(f"{path}, {row.place}: has another label than the same prompt above: correct one of them")
    labels = {prompt.memorable for prompt in prompts.values()}
    for label, name in ((True, "memorized"), (False, "ordinary")):
        if label not in labels:
            raise UserError(f"{path}: no {name} prompt in it: a ranking needs both, memorized (1) and ordinary (0)")
    return list(prompts.values())


def _prompt(place: str, number: str, cells: dict[str, Any], column: str) -> Prompt:
    caption, label = caption_column(cells, column), find_name(cells, LABELS)
    if caption is None:
        raise no_caption_column(Path(place), cells, column)
    if label is None:
        raise UserError(f"{place}: no column named {' or '.join(LABELS)}: write 1 for memorized prompts, 0 for others")
    text, word = cells[caption], _text(cells[label])
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{place}: no prompt in it: correct or delete the row")
    if word.lower() not in WORDS:
        raise UserError(f"{place}: {label} is {word!r}: write 1 or 0")
    known = {name: _text(cells.get(name)) for name in ("kind", "copies", "cluster")}
    if known["copies"] and not (known["copies"].isdecimal() and len(known["copies"]) < 10):
        raise UserError(f"{place}: copies is {known['copies']!r}: write a number below a billion")
    copies = int(known["copies"]) if known["copies"] else None
    return Prompt(number, text, known["kind"] or None, copies, WORDS[word.lower()], known["cluster"] or None)


def _text(cell: object) -> str:
    return "" if cell is None else str(cell).strip()
