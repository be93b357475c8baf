"""Webdataset tars, read in memory and in order: nothing is ever extracted."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath

from unmemorize.data.items import ENDINGS, MAX_CAPTION, MAX_FILE, Item, caption_in, climbs_out, safe_id, usable

TEXTS = (".txt", ".caption", ".text", ".json")
MAX_JSON = 1 << 20


@dataclass(frozen=True)
class Member:
    """A file of the archive: its key, its ending, its bytes, or what is wrong with it."""

    key: str
    ending: str
    content: bytes = b""
    problem: str = ""


@dataclass(frozen=True)
class TarPiece:
    """One archive."""

    path: Path

    def items(self) -> Iterator[Item]:
        """Read it: members that follow each other and share their name up to its first dot are one row."""
        for key, members in groupby(_members(self.path), key=lambda member: member.key):
            yield _item(safe_id(f"{self.path.stem}/{key}"), members)


def _members(path: Path) -> Iterator[Member]:
    try:
        # "r|": a stream, so that a compressed archive is read once and no index of it is kept.
        with tarfile.open(path, "r|*") as tar:
            for info in tar:
                tar.members = []  # type: ignore[attr-defined]  # not in its stubs; it would keep a million headers
                if not info.isdir():
                    yield _member(tar, info)
    except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error):
        yield Member(f"{path.name}: end", "", problem="archive cannot be read to its end")


def _member(tar: tarfile.TarFile, info: tarfile.TarInfo) -> Member:
    folder, _, base = info.name.rpartition("/")
    stem, _, _ = base.partition(".")
    key, ending = f"{folder}/{stem}".lstrip("/"), PurePosixPath(base).suffix.lower()
    if climbs_out(info.name):
        return Member(safe_id(info.name), "", problem="path leaves the folder")
    if not info.isreg():
        return Member(key, "", problem="not a plain file")
    if ending not in ENDINGS + TEXTS:
        return Member(key, "")
    if info.size > (MAX_FILE if ending in ENDINGS else MAX_JSON if ending == ".json" else 4 * MAX_CAPTION):
        return Member(key, "", problem="file too large" if ending in ENDINGS else "caption too long")
    file = tar.extractfile(info)
    return Member(key, ending, file.read() if file else b"")


def _item(id: str, members: Iterator[Member]) -> Item:
    problem, picture, plain, document = "", None, None, None
    for m in members:  # one at a time: no more than a row's first picture and captions are held
        problem = problem or m.problem
        if m.ending in ENDINGS:
            picture = m.content if picture is None else picture
        elif m.ending == ".json":
            document = m.content if document is None else document
        elif m.ending:
            plain = m.content if plain is None else plain
    if problem:
        return Item(id, problem=problem)
    caption = plain if plain is not None else None if document is None else caption_in(document)
    if picture is None:
        return Item(id, problem="no picture" if caption is None else "caption without a picture")
    return usable(id, caption, lambda: picture)
