"""Files that are read: regular ones only, since opening a named pipe or a device can wait forever."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from unmemorize.core.errors import UserError
from unmemorize.core.storage import is_remote, kind_of_remote, remote_name

EVERYTHING = "**/*"


def kind_of(path: Path) -> str:
    """What is at a path, with links followed: "a file", "a folder", "nothing", or a kind that is never opened."""
    if is_remote(path):
        return kind_of_remote(path)
    try:
        mode = path.stat().st_mode
    except ValueError:  # a name with a NUL in it
        return "nothing"
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "a link to itself"
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
            return "nothing"
        raise
    if stat.S_ISREG(mode):
        return "a file"
    if stat.S_ISDIR(mode):
        return "a folder"
    if stat.S_ISFIFO(mode):
        return "a named pipe"
    if stat.S_ISSOCK(mode):
        return "a socket"
    return "a device"


def real_path(path: Path) -> Path:
    """The path that links lead to; of a link to itself it is the link."""
    return Path(os.path.realpath(path))


def walk(folder: Path) -> Iterator[Path]:
    """Everything in a folder, in no order; what another process deletes meanwhile is passed over."""
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            yield Path(place, name)


def is_special(path: Path) -> bool:
    """Whether something is there that is neither a regular file nor a folder."""
    return kind_of(path) not in ("a file", "a folder", "nothing")


def require_file(path: Path, remedy: str) -> None:
    """Refuse what is no regular file; `remedy` ends the message.

    Raises:
        UserError: It is missing, a folder, a named pipe, a socket or a device.
    """
    kind, name = kind_of(path), remote_name(path)
    if kind == "nothing":
        raise UserError(f"{name}: no such file: {remedy}")
    if kind != "a file":
        raise UserError(f"{name}: {kind}, not a file: {remedy}")


def require_plain(folder: Path, pattern: str = EVERYTHING) -> None:
    """Refuse a folder that holds anything but regular files and folders, at the paths that match `pattern`.

    Raises:
        UserError: It holds a named pipe, a socket or a device.
    """
    for path in folder.glob(pattern) if pattern != EVERYTHING else walk(folder):
        if is_special(path):
            raise UserError(f"{path}: {kind_of(path)}, which is never opened: remove it")
