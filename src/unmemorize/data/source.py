"""Read prompts and training pictures."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image, ImageOps

from unmemorize.core.errors import UserError
from unmemorize.core.listed import Listed
from unmemorize.core.pictures import Unusable, read_picture
from unmemorize.core.plain import printable
from unmemorize.data.captions import pieces, prompt_pieces
from unmemorize.data.items import TWICE, Item
from unmemorize.data.pictures import pixels_of
from unmemorize.data.tables import UNREADABLE
from unmemorize.metrics.related import related
from unmemorize.metrics.similarity import Box, References

log = logging.getLogger(__name__)

Half = Literal["choosing", "reporting"]

READABLE = ("empty caption", "caption too long")  # what is no caption to train on may be a prompt to audit
REMEDIES = {
    "caption is not UTF-8": "save the file as UTF-8",
    "more cells than the header": "put the text in double quotes",
    TWICE: "rename or delete one of them",
    UNREADABLE: "name another file, or give it its true ending",
}
# What leaves a picture without a caption, or a caption without a picture: said in a line, since the others are read.
MISSING = (
    *("caption without a picture", "no file_name", "no picture", "no such picture", "link to a folder"),
    "picture of another format",
)


@dataclass(frozen=True)
class Prompt:
    """A prompt to audit; the other fields are ground truth, where there is any.

    `copies` is how many training rows have this prompt, `memorable` whether a detector should find it,
    `cluster` names the prompts it is related to, `half` says whether settings are chosen on it or results reported.
    """

    id: str
    text: str
    kind: str | None = None
    copies: int | None = None
    memorable: bool | None = None
    cluster: str | None = None
    half: Half | None = None


class Numbered(Listed[Prompt]):
    """Prompts of which nothing but the text is known, numbered in order: a tenth of the memory of so many objects."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = pa.array(texts, pa.large_string())

    def __len__(self) -> int:
        return len(self._texts)

    def at(self, place: int) -> Prompt:
        """The prompt of a place."""
        return Prompt(f"{place:05d}", self._texts[place].as_py())


class Stored(Listed[Prompt]):
    """The prompts of a table in a run, a row group of which is read when it is asked for: no more is held.

    Args:
        path: `scores/prompts.parquet`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        metadata = pq.read_metadata(path)
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._starts = np.cumsum([0, *sizes])
        self._held: tuple[int, list[Prompt]] = -1, []

    def __len__(self) -> int:
        return int(self._starts[-1])

    def at(self, place: int) -> Prompt:
        """The prompt of a place, whose row group is held until one of another is asked for."""
        group = int(np.searchsorted(self._starts, place, "right")) - 1
        if group != self._held[0]:
            with pq.ParquetFile(self._path) as file:
                rows = file.read_row_group(group).to_pylist()
            self._held = group, [Prompt(row.pop("id"), row.pop("prompt"), **row) for row in rows]
        return self._held[1][place - int(self._starts[group])]


def clusters_of(prompts: Sequence[Prompt]) -> list[str]:
    """The cluster that each prompt belongs to: its own where all have one, else by the words that they share."""
    if all(prompt.cluster for prompt in prompts):
        return [str(prompt.cluster) for prompt in prompts]
    return related([prompt.text for prompt in prompts])


def read_prompts(path: Path, column: str | None = None) -> Sequence[Prompt]:
    """Read prompts from txt (one a line), csv (any delimiter), tsv, jsonl, Parquet, or the captions of a tar.

    Equal prompts are read once. Every row must be readable: a prompt that is left out is not audited.

    Args:
        path: The file.
        column: The caption column; by default the first of prompt, caption and text that the file has.

    Raises:
        UserError: The file is missing, empty, not UTF-8, has no caption column, or has a row that is not text.
    """
    texts: dict[str, None] = {}
    for piece in prompt_pieces(path, column or ""):
        for item in piece.items():
            if item.caption is None or item.problem not in ("", *READABLE):
                remedy = REMEDIES.get(item.problem, "correct or delete the row")
                place = path.parent / item.id if item.id.startswith(path.name) else f"{path}, {item.id}"
                raise UserError(f"{place}: {item.problem}: {remedy}")
            texts[item.caption] = None
    if not texts:
        raise UserError(f"{path}: no prompts in it: write one prompt a line, or name another file")
    return Numbered(texts)


def read_references(source: Path, size: tuple[int, int], column: str = "") -> References:
    """Read training pictures, the centre of each resized to `size` (height, width), as bytes.

    The source is a folder of pictures, a table, a tar or a saved dataset, read as every command reads it. A picture
    without a caption is kept; what is missing is counted by reason, and logged in one line.

    Raises:
        UserError: The source is missing or holds no pictures, or a picture, its mask or its metadata cannot be read.
    """
    pixels = bytearray()  # grows in place: all pictures are never there twice
    names: dict[str, None] = {}
    masks: list[Box | None] = []
    captions: list[str | None] = []
    missing: Counter[str] = Counter()
    for piece in pieces(source, column):
        for item in piece.items():
            if item.problem:
                missing[item.problem] += 1
            if item.load is None:
                if item.problem in ("", *MISSING):
                    continue
                raise UserError(f"{source / item.id}: {item.problem}: repair or remove it")
            image = _picture(source, item)
            pixels += pixels_of(_fitted(image, size)).numpy().tobytes()
            names[_new_name(item.id, names)] = None
            masks.append(_box(source, item, image.size, size))
            captions.append(None if item.problem else item.caption)
    if not names:
        raise UserError(f"{source}: no pictures in it: name the folder that holds the training pictures")
    if missing:
        reasons = ", ".join(f"{count} × {reason}" for reason, count in missing.most_common())
        log.warning("%s: %d pictures; %s", printable(str(source)), len(names), reasons)
    tensor = torch.frombuffer(pixels, dtype=torch.uint8).view(len(names), 3, *size)
    return References(tuple(names), tensor, tuple(masks), tuple(captions))


def _picture(source: Path, item: Item) -> Image.Image:
    assert item.load is not None
    try:
        return read_picture(item.load())
    except (Unusable, OSError) as error:
        raise UserError(f"{source / item.id}: {error}: repair or remove it") from error


def _fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The picture's centre, cut to the aspect of `size`."""
    return image if image.size == size[::-1] else ImageOps.fit(image, size[::-1], Image.Resampling.LANCZOS)


def _new_name(name: str, taken: dict[str, None]) -> str:
    """The name, numbered where a table has two rows of it."""
    number, new = 2, name
    while new in taken:
        number, new = number + 1, f"{name} ({number})"
    return new


def _box(source: Path, item: Item, was: tuple[int, int], size: tuple[int, int]) -> Box | None:
    if item.mask is None:
        return None
    mask = item.mask
    if not isinstance(mask, list) or not _is_part(mask, was):
        raise UserError(f"{source / item.id}: mask {mask}: write [left, top, right, bottom] of a part of the picture")
    scale = max(size[1] / was[0], size[0] / was[1])
    cut = [(full * scale - kept) / 2 for full, kept in zip(was, size[::-1], strict=True)] * 2
    left, top, right, bottom = (max(round(v * scale - c), 0) for v, c in zip(mask, cut, strict=True))
    return left, top, min(right, size[1]), min(bottom, size[0])


def _is_part(mask: list[Any], was: tuple[int, int]) -> bool:
    if len(mask) != 4 or not all(isinstance(v, int) for v in mask):
        return False
    left, top, right, bottom = mask
    inside = 0 <= left < right <= was[0] and 0 <= top < bottom <= was[1]
    return bool(inside and (right - left) * (bottom - top) < was[0] * was[1])
