"""A folder of pictures with captions: `metadata.jsonl` or `metadata.csv`, or a .txt of the same stem."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from unmemorize.data.items import (
    ENDINGS,
    MAX_CAPTION,
    Item,
    caption_of,
    inside,
    read_limited,
    safe_id,
    usable,
)

BATCH = 256
TABLES = ("metadata.jsonl", "metadata.csv")


@dataclass(frozen=True)
class FolderPiece:
    """Some rows of a folder: (file name, caption, problem); a caption of None is looked for beside the picture."""

    root: Path
    rows: tuple[tuple[str, object, str], ...]

    def items(self) -> Iterator[Item]:
        """Read them."""
        for name, caption, problem in self.rows:
            yield Item(safe_id(name), problem=problem) if problem else _item(self.root, name, caption)


def folder_pieces(root: Path, column: str) -> list[FolderPiece]:
    """Every picture of a folder, and every caption that lacks one, in pieces of some hundred rows."""
    files = sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.suffix.lower() in ENDINGS)
    table = next((root / name for name in TABLES if (root / name).is_file()), None)
    rows = list(_rows(table, column)) if table else []
    listed = {name for name, _, _ in rows}
    rows += [(name, None, "") for name in files if name not in listed]
    stems = {str(Path(name).with_suffix("")) for name in files}
    for text in sorted(root.rglob("*.txt")):
        name = str(text.relative_to(root))
        if name[: -len(".txt")] not in stems:
            rows.append((name, None, "caption without a picture"))
    return [FolderPiece(root, tuple(rows[i : i + BATCH])) for i in range(0, len(rows), BATCH)]


def _item(root: Path, name: str, caption: object) -> Item:
    path = inside(root, name)
    if path is None:
        return Item(safe_id(name), problem="path leaves the folder")
    if not path.is_file():
        return Item(safe_id(name), problem="no such picture")
    if caption is None:
        beside = inside(root, str(Path(name).with_suffix(".txt")))
        if beside is None or not beside.is_file():
            return Item(safe_id(name), problem="no caption")
        if beside.stat().st_size > 4 * MAX_CAPTION:
            return Item(safe_id(name), problem="caption too long")
        caption = beside.read_bytes()
    return usable(safe_id(name), caption, partial(read_limited, path))


def _rows(table: Path, column: str) -> Iterator[tuple[str, object, str]]:
    for number, row in enumerate(_parsed(table), 1):
        name = row.get("file_name") if row else None
        if row is None or not isinstance(name, str):
            yield f"{table.name}, row {number}", None, "no file_name" if row else "row cannot be read"
        else:
            caption = caption_of(row, column)
            yield name, caption, ""


def _parsed(table: Path) -> Iterator[dict[str, Any] | None]:
    """The table's rows; None for one that cannot be read."""
    if table.suffix == ".jsonl":
        with table.open("rb") as lines:
            yield from _json_rows(lines)
    else:
        # What is no UTF-8 becomes surrogates, which no caption may hold: the row is skipped and not the table.
        with table.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
            yield from _csv_rows(text)


def _json_rows(lines: Iterable[bytes]) -> Iterator[dict[str, Any] | None]:
    for line in lines:
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):  # not JSON, or not UTF-8
                row = None
            yield row if isinstance(row, dict) else None


def _csv_rows(lines: Iterable[str]) -> Iterator[dict[str, Any] | None]:
    csv.field_size_limit(1 << 30)
    rows = csv.DictReader(line.replace("\0", "") for line in lines)
    while True:
        try:
            yield next(rows)
        except StopIteration:
            return
        except csv.Error:
            yield None
