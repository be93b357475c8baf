"""Read prompts and training pictures."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from PIL import Image, ImageOps

from unmemorize.core.errors import UserError
from unmemorize.core.files import kind_of, require_file
from unmemorize.data.pictures import pixels_of, read_image
from unmemorize.metrics.similarity import References

COLUMNS = ("prompt", "caption", "text")
_surrogate = re.compile("[\ud800-\udfff]")  # half a character, as broken JSON escapes leave it
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class Prompt:
    """A prompt to audit; the other fields are ground truth, where there is any.

    `copies` is how many training rows have this prompt, `memorable` whether a detector should find it,
    `cluster` names the prompts it is related to.
    """

    id: str
    text: str
    kind: str | None = None
    copies: int | None = None
    memorable: bool | None = None
    cluster: str | None = None


def read_prompts(path: Path, column: str | None = None) -> list[Prompt]:
    """Read prompts from txt (one a line), csv (any delimiter), tsv, jsonl or Parquet; equal prompts are read once.

    Args:
        path: The file.
        column: The caption column; found by its usual names (prompt, caption, text) by default.

    Raises:
        UserError: The file is missing, empty, not UTF-8, has no caption column, or has a row that is not text.
    """
    require_file(path, "name a .txt, .csv, .tsv, .jsonl or .parquet file of prompts")
    try:
        texts = list(dict.fromkeys(_texts(path, column)))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}: save the file as UTF-8") from error
    if not texts:
        raise UserError(f"{path}: no prompts in it: write one prompt a line, or name another file")
    return [Prompt(f"{i:05d}", text) for i, text in enumerate(texts)]


def _texts(path: Path, column: str | None) -> Iterator[str]:
    match path.suffix.lower():
        case ".csv" | ".tsv":
            yield from _column(path, _csv_rows(path), column)
        case ".jsonl":
            yield from _column(path, _json_rows(path), column)
        case ".parquet":
            yield from _column(path, _parquet_rows(path), column)
        case ".txt" | "":
            yield from (line for line in _lines(path) if line.strip())
        case ending:
            raise UserError(f"{path}: {ending} is no kind of prompt file: use .txt, .csv, .tsv, .jsonl or .parquet")


def _lines(path: Path) -> list[str]:
    # Not splitlines(): that breaks a caption at U+2028, U+0085 and six other characters that end no line of a file.
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    return lines if lines[-1] else lines[:-1]


def _csv_rows(path: Path) -> Iterable[dict[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        head = file.readline()
        file.seek(0)
        delimiter = max(",;\t|", key=head.count)
        csv.field_size_limit(10_000_000)
        try:
            yield from csv.DictReader(file, delimiter=delimiter)
        except csv.Error as error:
            raise UserError(f"{path}: not a table of text: {error}") from error


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}, line {number}: not JSON: {error.msg}") from error
            if not isinstance(row, dict):
                raise UserError(f'{path}, line {number}: not an object: write {{"prompt": "…"}}')
            yield row


def _parquet_rows(path: Path) -> Iterable[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        return rows
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a Parquet file: name another file, or give it its true ending") from error


def _column(path: Path, rows: Iterable[dict[Any, Any]], column: str | None) -> Iterator[str]:
    key = None
    for number, row in enumerate(rows, 1):
        if key is None:
            key = _key(path, row, column)
        if any(row.get(None) or ()):  # where the csv module puts cells beyond the header's
            raise UserError(f"{path}, row {number}: more cells than the header: put the text in double quotes")
        value = row.get(key)
        if not isinstance(value, str) or _surrogate.search(value):
            raise UserError(f"{path}, row {number}: {key!r} is not text: correct or delete the row")
        yield value


def _key(path: Path, row: dict[str, Any], column: str | None) -> str:
    names = [name for name in row if name is not None]
    wanted = (column.lower(),) if column else COLUMNS
    found = next((name for want in wanted for name in names if name.strip().lower() == want), None)
    if found is None:
        what = f"column {column!r}" if column else f"column named {', '.join(COLUMNS)}"
        raise UserError(f"{path}: no {what}: it has {', '.join(names)}; name one with --column")
    return found


def read_references(folder: Path, size: tuple[int, int]) -> References:
    """Read training pictures: the centre of each, resized to `size` (height, width).

    Captions come from `metadata.jsonl` (file_name, text, and mask as [left, top, right, bottom] in pixels of the
    file) or from a .txt file of the same stem.

    Raises:
        UserError: The folder is missing or holds no pictures, or a picture or its metadata cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder: name the folder that holds the training pictures")
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in PICTURES)
    if not files:
        raise UserError(f"{folder}: no pictures in it: it should hold {', '.join(PICTURES)} files")
    names = [str(file.relative_to(folder)) for file in files]
    rows = _metadata(folder)
    pixels = torch.empty(len(files), 3, *size, dtype=torch.uint8)
    masks, captions = [], []
    for number, (file, name) in enumerate(zip(files, names, strict=True)):
        row = rows.get(name, {})
        pixels[number], was = _picture(file, size)
        masks.append(_box(file, row, was, size))
        captions.append(_caption(file, row))
    return References(tuple(names), pixels, tuple(masks), tuple(captions))


def _metadata(folder: Path) -> dict[str, dict[str, Any]]:
    path = folder / "metadata.jsonl"
    if kind_of(path) == "nothing":
        return {}
    require_file(path, "repair or remove it")
    try:
        return {row["file_name"]: row for row in _json_rows(path) if isinstance(row.get("file_name"), str)}
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}: save the file as UTF-8") from error


def _caption(file: Path, row: dict[str, Any]) -> str | None:
    caption = row.get("text")
    if isinstance(caption, str) and not _surrogate.search(caption):
        return caption
    text = file.with_suffix(".txt")
    if kind_of(text) == "nothing":
        return None
    require_file(text, "repair or remove it")
    return text.read_text(encoding="utf-8", errors="replace").strip()


def _picture(file: Path, size: tuple[int, int]) -> tuple[torch.Tensor, tuple[int, int]]:
    """The picture's bytes (3, h, w), its centre cut to the aspect of `size`, and the (width, height) it had."""
    rgb = read_image(file)
    small = rgb if rgb.size == size[::-1] else ImageOps.fit(rgb, size[::-1], Image.Resampling.LANCZOS)
    return pixels_of(small), rgb.size


def _box(
    file: Path, row: dict[str, Any], was: tuple[int, int], size: tuple[int, int]
) -> tuple[int, int, int, int] | None:
    mask = row.get("mask")
    if mask is None:
        return None
    if not _is_part(mask, was):
        raise UserError(f"{file}: mask {mask} in metadata.jsonl: write [left, top, right, bottom] of a part of it")
    scale = max(size[1] / was[0], size[0] / was[1])
    cut = [(full * scale - kept) / 2 for full, kept in zip(was, size[::-1], strict=True)] * 2
    left, top, right, bottom = (max(round(v * scale - c), 0) for v, c in zip(mask, cut, strict=True))
    return left, top, min(right, size[1]), min(bottom, size[0])


def _is_part(mask: object, was: tuple[int, int]) -> bool:
    if not isinstance(mask, list) or len(mask) != 4 or not all(isinstance(v, int) for v in mask):
        return False
    left, top, right, bottom = mask
    inside = 0 <= left < right <= was[0] and 0 <= top < bottom <= was[1]
    return bool(inside and (right - left) * (bottom - top) < was[0] * was[1])
