"""Webdataset tars, read in memory and in order: nothing is ever extracted."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

from unmemorize.core.pictures import ENDINGS
from unmemorize.core.storage import opened
from unmemorize.data.items import (
    MAX_FILE,
    SIDECARS,
    Item,
    climbs_out,
    is_hidden,
    safe_id,
    sidecar_caption,
    sidecar_limit,
    with_caption,
)

BLOCK = 1 << 20


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
        with opened(path) as file, tarfile.open(fileobj=file, mode="r|*") as tar:
            for info in tar:
                tar.members = []  # type: ignore[attr-defined]  # not in its stubs; it would keep a million headers
                if not info.isdir() and (climbs_out(info.name) or not is_hidden(info.name)):
                    yield _member(tar, info)
                _skip_rest(tar)
    except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error):
        yield Member(f"{path.name}: end", "", problem="archive cannot be read to its end")


def _skip_rest(tar: tarfile.TarFile) -> None:
    """Go on to the next header: tarfile itself, at the end of a file, looks for the exabytes that a header claims.

    Raises:
        EOFError: The archive ends before.
    """
    stream: Any = tar.fileobj
    while (left := tar.offset - stream.tell()) > 0:
        if not stream.read(min(left, BLOCK)):
            raise EOFError


def _member(tar: tarfile.TarFile, info: tarfile.TarInfo) -> Member:
    folder, _, base = info.name.removeprefix("./").rpartition("/")
    stem, _, _ = base.partition(".")
    key, ending = f"{folder}/{stem}".lstrip("/"), PurePosixPath(base).suffix.lower()
    if climbs_out(info.name):
        return Member(safe_id(info.name), "", problem="path leaves the folder")
    if not info.isreg():
        return Member(key, "", problem="not a plain file")
    if ending not in ENDINGS + SIDECARS:
        return Member(key, "")
    if info.size > (MAX_FILE if ending in ENDINGS else sidecar_limit(ending)):
        return Member(key, "", problem="file too large" if ending in ENDINGS else "caption too long")
    file = tar.extractfile(info)
    return Member(key, ending, file.read() if file else b"")


def _item(id: str, members: Iterator[Member]) -> Item:
    problem, picture = "", None
    texts: dict[str, bytes] = {}
    for member in members:  # one at a time: no more than a row's first picture and captions are held
        problem = problem or member.problem
        if member.ending in ENDINGS:
            picture = member.content if picture is None else picture
        elif member.ending:
            texts.setdefault(member.ending, member.content)
    if problem:
        return Item(id, problem=problem)
    ending = next((ending for ending in SIDECARS if ending in texts), "")
    if picture is None:
        return Item(id, problem="caption without a picture" if ending else "no picture")
    item = Item(id, load=lambda: picture, captioned_by=ending)
    return with_caption(item, sidecar_caption(ending, texts[ending]) if ending else None)
