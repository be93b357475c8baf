"""What every kind of source is read into: items, each a caption with or without a picture, or a reason to skip it.

Nothing a source holds is written anywhere while it is read, and nothing in it stops the reading.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from unmemorize.core.errors import UserError
from unmemorize.core.files import kind_of, real_path
from unmemorize.core.plain import from_json, is_text

COLUMNS = ("prompt", "caption", "text")  # the first of them that a table has is its captions
SIDECARS = (".txt", ".caption", ".text", ".json")  # files that hold a picture's caption; the first there is counts
MAX_CAPTION = 20_000  # characters: what is longer is a file that was taken for a caption
MAX_FILE = 1 << 26  # bytes of one picture
MAX_JSON = 1 << 20
TWICE = "two columns of one name"

_drive = re.compile(r"[A-Za-z]:[\\/]")


@dataclass(frozen=True)
class Item:
    """One row of a source.

    `problem` says why it cannot be used as training data. An item with a problem may still have a picture, whose
    caption is missing or no text, or a caption, which is blank or overlong. `load` reads the picture's file, `mask` is
    the box that varies in it as the metadata has it, `captioned_by` the kind of file the caption came from.
    """

    id: str
    caption: str | None = None
    load: Callable[[], bytes] | None = None
    problem: str = ""
    captioned_by: str = ""
    mask: object = None


class Piece(Protocol):
    """A part of a source that is read in one go."""

    def items(self) -> Iterator[Item]:
        """Every row of it, usable or not, always in the same order."""
        ...


def with_caption(item: Item, caption: object) -> Item:
    """The item with its caption, or with what is wrong with that: missing, no text, not UTF-8, overlong or blank."""
    if isinstance(caption, bytes):
        caption = caption.decode("utf-8-sig", "surrogateescape")
    if caption is None:
        return replace(item, problem="no caption")
    if not isinstance(caption, str):
        return replace(item, problem="caption is not text")
    if not is_text(caption):
        return replace(item, problem="caption is not UTF-8")
    problem = "caption too long" if len(caption) > MAX_CAPTION else "" if caption.strip() else "empty caption"
    return replace(item, caption=caption, problem=problem)


def sidecar_caption(ending: str, content: bytes) -> object:
    """The caption in a file that holds one picture's, by the file's ending: its text, or the caption in its JSON."""
    if ending != ".json":
        # Latin-1 and the like become surrogates, which `with_caption` refuses by name.
        return content.decode("utf-8-sig", "surrogateescape").strip()
    try:
        document = from_json(content)
    except ValueError:
        return None
    return caption_of(document) if isinstance(document, dict) else None


def sidecar_limit(ending: str) -> int:
    """The most bytes that such a file may have."""
    return MAX_JSON if ending == ".json" else 4 * MAX_CAPTION


def safe_id(name: object) -> str:
    """A name that can be stored as UTF-8 and is not overlong, whatever the source calls the row."""
    return str(name)[:500].encode("utf-8", "backslashreplace").decode()


def caption_of(row: Mapping[str, Any], column: str = "") -> object:
    """The value of the caption column of a row, or None."""
    key = caption_column(row, column)
    return None if key is None else row[key]


def caption_column(names: Iterable[str], column: str = "") -> str | None:
    """The caption column among `names`: the one asked for, or the first of `COLUMNS`; case and spaces do not count."""
    return find_name(names, (column.lower(),) if column else COLUMNS)


def find_name(names: Iterable[str], wanted: Iterable[str]) -> str | None:
    """The first of the wanted names, which are in lower case, as `names` has it."""
    known = {name.strip().lower(): name for name in reversed(list(names))}
    return next((known[name] for name in wanted if name in known), None)


def is_twice(names: Iterable[str], read: Iterable[str | None]) -> bool:
    """Whether a table has a column that is read more than once under its name."""
    count = Counter(names)
    return any(count[name] > 1 for name in read if name is not None)


def no_caption_column(place: Path, names: Iterable[str], column: str) -> UserError:
    """The error of a table without a caption column, which lists those there are."""
    what = f"column {column!r}" if column else f"column named {', '.join(COLUMNS)}"
    held = ", ".join(safe_id(name) for name in list(names)[:20])
    return UserError(f"{place}: no {what}: it has {held}; name one with --column")


def name_key(name: str) -> str:
    """A name as names are compared: whatever its separators, a leading `./`, and the way its accents are composed."""
    return unicodedata.normalize("NFC", str(PurePosixPath(name.replace("\\", "/"))))


def climbs_out(name: str) -> bool:
    """Whether a path inside an archive or a table would leave the folder it belongs to."""
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or bool(_drive.match(name)) or "\0" in name


def inside(root: Path, name: str) -> Path | None:
    """The file `name` in the folder `root`; None if it, or what it links to, lies elsewhere.

    Files of a Hugging Face cache are links from `snapshots` to its `blobs`, which lies in the same cache.
    """
    if climbs_out(name):
        return None
    path = root / name
    real = real_path(path)
    return path if any(real.is_relative_to(home) for home in _homes(real_path(root))) else None


def _homes(root: Path) -> Iterator[Path]:
    yield root
    for folder in (root, *root.parents):
        if folder.parent.name == "snapshots":
            yield folder.parent.parent / "blobs"


def why_not_opened(path: Path | None) -> str:
    """What is wrong with a path that `inside` gave; nothing where it is a regular file."""
    if path is None:
        return "path leaves the folder"
    kind = kind_of(path)
    if kind == "nothing":
        return "no such picture"
    return "" if kind == "a file" else f"{kind}, not a file"


def is_hidden(name: str) -> bool:
    """Whether a path in a source is of no interest: what macOS and version control leave beside the files."""
    parts = PurePosixPath(name).parts
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def read_limited(path: Path) -> bytes:
    """A picture's file.

    Raises:
        OSError: It cannot be read, or holds more than `MAX_FILE` bytes.
    """
    if path.stat().st_size > MAX_FILE:
        raise OSError("file too large")
    return path.read_bytes()
