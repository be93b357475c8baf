"""A folder of pictures with captions, as the Hugging Face convention, img2dataset and trainers leave it.

A picture's caption stands in the nearest `metadata.jsonl`, `.csv` or `.parquet` that names it, in its folder or one
above, else in a file beside it: `NAME.txt`, `.caption`, `.text` or `.json`, or `NAME.png.txt` and so on; else in a
JSON document for many pictures, as COCO has it, of which the first caption of a picture is read.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow.parquet as pq

from unmemorize.core.pictures import ENDINGS, OTHER_ENDINGS
from unmemorize.core.plain import from_json
from unmemorize.data.documents import Names
from unmemorize.data.items import (
    SIDECARS,
    TWICE,
    Item,
    caption_column,
    caption_of,
    climbs_out,
    find_name,
    inside,
    is_hidden,
    is_twice,
    name_key,
    read_limited,
    safe_id,
    sidecar_caption,
    sidecar_limit,
    why_not_opened,
    with_caption,
)
from unmemorize.data.tables import BROKEN, UNREADABLE
from unmemorize.data.texts import NAMES, Row, read_rows

BATCH = 256
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


@dataclass(frozen=True)
class Entry:
    """A row of a folder: a picture, its caption or the file that holds it, its mask; or a problem."""

    name: str
    caption: object = None
    captioned_by: str = ""
    sidecar: str = ""
    mask: object = None
    problem: str = ""


@dataclass(frozen=True)
class FolderPiece:
    """Some rows of a folder."""

    root: Path
    entries: tuple[Entry, ...]

    def items(self) -> Iterator[Item]:
        """Read them."""
        for entry in self.entries:
            item = Item(safe_id(entry.name), problem=entry.problem, mask=entry.mask)
            yield item if entry.problem else _item(self.root, entry, item)


def folder_pieces(root: Path, column: str) -> list[FolderPiece]:
    """Every picture of a folder, by name, then every caption that lacks one, in pieces of some hundred rows."""
    files, links = _walk(root)
    pictures = {name_key(name): name for name in files if _ending(name) in ENDINGS}
    rows, problems = _metadata(root, [name for name in files if Path(name).name in METADATA], pictures, column)
    beside = _sidecars(files, pictures)
    entries: list[Entry] = []
    for name in sorted({*pictures.values(), *rows}, key=Path):
        entries += [_entry(name, listed, beside) for listed in rows.get(name, [Entry(name)])]
    used = {text for texts in beside.values() for text in texts}
    documents = [name for name in files if _ending(name) == ".json" and name not in used]
    entries = _with_documents(root, entries, documents, column) + problems
    lonely = [name for name in files if _ending(name) in SIDECARS and _ending(name) != ".json" and name not in used]
    entries += [Entry(name, problem="caption without a picture") for name in lonely]
    entries += [Entry(name, problem="link to a folder") for name in links]
    entries += [Entry(name, problem="picture of another format") for name in files if _ending(name) in OTHER_ENDINGS]
    return [FolderPiece(root, tuple(entries[i : i + BATCH])) for i in range(0, len(entries), BATCH)]


def _walk(root: Path) -> tuple[list[str], list[str]]:
    """The names of the files in a folder, and of the links to folders in it, which are not followed."""
    files, links = [], []
    for folder, subfolders, names in os.walk(root):
        place = Path(folder).relative_to(root)
        files += [str(place / name) for name in names]
        links += [str(place / name) for name in subfolders if (Path(folder) / name).is_symlink()]
    return _shown(files), _shown(links)


def _shown(names: list[str]) -> list[str]:
    return sorted((name for name in names if not is_hidden(name)), key=Path)


def _ending(name: str) -> str:
    return Path(name).suffix.lower()


def _metadata(
    root: Path, tables: list[str], pictures: dict[str, str], column: str
) -> tuple[dict[str, list[Entry]], list[Entry]]:
    """What the tables say of each picture, by its name, and the rows that say nothing of any."""
    rows: dict[str, list[Entry]] = {}
    problems = []
    order = sorted(tables, key=lambda name: (-len(Path(name).parts), METADATA.index(Path(name).name)))
    of_any_case = {key.casefold(): name for key, name in pictures.items()}
    for table in order:
        here: dict[str, list[Entry]] = {}
        for entry in _listed(root, table, column):
            key = name_key(entry.name)
            name = pictures.get(key) or of_any_case.get(key.casefold(), entry.name)
            if entry.problem:
                problems.append(entry)
            elif climbs_out(name) or not (root / name).exists():
                problem = "path leaves the folder" if climbs_out(name) else "no such picture"
                problems.append(replace(entry, problem=problem))
            else:
                here.setdefault(name, []).append(replace(entry, name=name))
        rows = here | rows  # what a table nearer to the picture says goes first
    return rows, problems


def _listed(root: Path, table: str, column: str) -> Iterator[Entry]:
    """A table's rows: the picture's name in the whole folder, its caption, its mask."""
    path, place = root / table, PurePosixPath(Path(table).parent.as_posix())
    if problem := why_not_opened(inside(root, table)):
        yield Entry(table, problem=problem)
        return
    for row in _table_rows(path, column):
        name_column = _name_column(row.cells)
        name = row.cells[name_column] if name_column else None
        if row.problem or not isinstance(name, str):
            yield Entry(f"{table}, {row.place}", problem=row.problem or "no file_name")
        elif climbs_out(name):
            yield Entry(name, problem="path leaves the folder")
        else:
            caption = caption_of(row.cells, column)
            captioned_by = "" if caption is None else path.name
            yield Entry(str(place / name.replace("\\", "/")), caption, captioned_by, mask=_mask(row.cells))


def _table_rows(path: Path, column: str) -> Iterator[Row]:
    if path.suffix != ".parquet":
        yield from read_rows(path, column)
        return
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            there = file.schema_arrow.names
            read = [name for name in (_name_column(there), caption_column(there, column), "mask") if name in there]
            if is_twice(there, read):
                yield Row("header", problem=TWICE)
                return
            for batch in file.iter_batches(columns=read, use_threads=False):
                for cells in batch.to_pylist():
                    number += 1
                    yield Row(f"row {number}", cells)
    except BROKEN:
        yield Row(f"row {number + 1}", problem=UNREADABLE)


def _name_column(names: Iterable[str]) -> str | None:
    """The column that names the picture of a row."""
    return find_name(names, NAMES) or next((name for name in names if name.endswith("_file_name")), None)


def _mask(cells: dict[str, Any]) -> object:
    """The box that varies, as the row has it: a list, or in CSV its text."""
    mask = cells.get("mask")
    try:
        return from_json(mask) if isinstance(mask, str) and mask.strip() else mask or None
    except ValueError:
        return mask


def _sidecars(files: list[str], pictures: dict[str, str]) -> dict[str, list[str]]:
    """The files beside each picture that may hold its caption, by the picture's name; the best first."""
    held = {name.casefold(): name for name in files}
    beside: dict[str, list[str]] = {}
    for name in pictures.values():
        stem = str(Path(name).with_suffix(""))
        candidates = [start + ending for start in (stem, name) for ending in SIDECARS]
        texts = [held[text.casefold()] for text in candidates if text.casefold() in held]
        texts.sort(key=lambda text: _ending(text) == ".json")  # text goes before what was downloaded with it
        if texts:
            beside[name] = texts
    return beside


def _entry(name: str, listed: Entry, beside: dict[str, list[str]]) -> Entry:
    if listed.caption is not None or name not in beside:
        return listed
    return replace(listed, sidecar=beside[name][0])


def _with_documents(root: Path, entries: list[Entry], documents: list[str], column: str) -> list[Entry]:
    """The entries, those without a caption with one from documents; then the names in these that are no picture's."""
    lacking = {entry.name for entry in entries if entry.caption is None and not entry.sidecar}
    if not lacking:
        return entries
    names = Names([entry.name for entry in entries])
    captions: dict[str, tuple[object, str]] = {}
    missing: dict[str, None] = {}
    for document in documents:
        path = inside(root, document)
        if path is None or why_not_opened(path):
            continue
        known, unknown = names.captioned(path, column)
        if known:  # of the many JSON files that tools leave, few hold captions
            captions = {name: (caption, path.name) for name, caption in known.items()} | captions
            missing |= dict.fromkeys(unknown)
    captioned = []
    for entry in entries:
        caption, captioned_by = captions.get(entry.name, (None, "")) if entry.name in lacking else (None, "")
        captioned.append(replace(entry, caption=caption, captioned_by=captioned_by) if captioned_by else entry)
    return captioned + [Entry(name, problem="no such picture") for name in missing]


def _item(root: Path, entry: Entry, item: Item) -> Item:
    path = inside(root, entry.name)
    if path is None or why_not_opened(path):
        return replace(item, problem=why_not_opened(path))
    item = replace(item, load=partial(read_limited, path), captioned_by=entry.captioned_by)
    if not entry.sidecar:
        return with_caption(item, entry.caption)
    text, ending = inside(root, entry.sidecar), _ending(entry.sidecar)
    if text is None or why_not_opened(text):
        return replace(item, load=None, problem=why_not_opened(text))
    if text.stat().st_size > sidecar_limit(ending):
        return replace(item, problem="caption too long")
    stem = str(Path(entry.name).with_suffix(""))
    item = replace(item, captioned_by=entry.sidecar[len(stem) :])
    return with_caption(item, sidecar_caption(ending, text.read_bytes()))
