"""What every kind of source is read into: items, each a caption with or without a picture, or a reason to skip it.

Nothing a source holds is written anywhere while it is read, and nothing in it stops the reading.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

CAPTIONS = ("caption", "text", "prompt")
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MAX_CAPTION = 20_000  # characters: what is longer is a file that was taken for a caption
MAX_FILE = 1 << 26  # bytes of one picture

_surrogate = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Item:
    """One row of a source. `problem` says why it cannot be used; `load` reads its picture's file."""

    id: str
    caption: str = ""
    load: Callable[[], bytes] | None = None
    problem: str = ""


def usable(id: str, caption: object, load: Callable[[], bytes] | None) -> Item:
    """An item, unless its caption is missing, no text, not UTF-8 or overlong."""
    if isinstance(caption, bytes):
        if len(caption) > 4 * MAX_CAPTION:
            return Item(id, problem="caption too long")
        try:
            caption = caption.decode("utf-8-sig")
        except UnicodeDecodeError:
            return Item(id, problem="caption is not UTF-8")
    if caption is None:
        return Item(id, problem="no caption")
    if not isinstance(caption, str):
        return Item(id, problem="caption is not text")
    if len(caption) > MAX_CAPTION:
        return Item(id, problem="caption too long")
    if _surrogate.search(caption):
        return Item(id, problem="caption is not UTF-8")
    return Item(id, caption, load) if caption.strip() else Item(id, problem="empty caption")


def safe_id(name: object) -> str:
    """A name that can be stored as UTF-8 and is not overlong, whatever the source calls the row."""
    return str(name)[:500].encode("utf-8", "backslashreplace").decode()


def caption_in(document: bytes) -> object:
    """The caption in a JSON object, or None."""
    try:
        found = json.loads(document)
    except (ValueError, RecursionError):
        return None
    return caption_of(found) if isinstance(found, dict) else None


def caption_of(row: dict[str, Any], column: str = "") -> object:
    """The value of the caption column of a row, or None."""
    key = caption_column(row, column)
    return None if key is None else row[key]


def caption_column(names: Iterable[str], column: str = "") -> str | None:
    """The caption column among `names`: the one asked for, or one of the usual names."""
    known = list(names)
    wanted = (column.lower(),) if column else CAPTIONS
    return next((n for want in wanted for n in known if isinstance(n, str) and n.strip().lower() == want), None)


def climbs_out(name: str) -> bool:
    """Whether a path inside an archive or a table would leave the folder it belongs to."""
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or ":" in name.split("/")[0] or "\0" in name


def inside(root: Path, name: str) -> Path | None:
    """The file `name` in the folder `root`; None if it, or what it links to, lies elsewhere."""
    if climbs_out(name):
        return None
    path = root / name
    return path if path.resolve().is_relative_to(root.resolve()) else None


def read_limited(path: Path) -> bytes:
    """A picture's file.

    Raises:
        OSError: It cannot be read, or holds more than `MAX_FILE` bytes.
    """
    if path.stat().st_size > MAX_FILE:
        raise OSError("file too large")
    return path.read_bytes()
