"""Where a command writes: checked before its work, so that nothing is overwritten, and nothing lost at the end."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from unmemorize.core.errors import UserError
from unmemorize.core.files import is_special, kind_of, real_path
from unmemorize.core.run import atomic, is_kept, require_new
from unmemorize.core.storage import is_remote, remote_name

STDOUT = ("-", "/dev/stdout")
SYSTEM = ("/proc", "/sys", "/dev")
MEMORY = "/dev/shm"  # an ordinary file system


@dataclass(frozen=True)
class Output:
    """What a command writes, as the user named it.

    `kind` is a `file`, a `new` folder, a `run` directory, which is new or holds a run to continue, or any `folder`.
    """

    option: str
    path: Path
    kind: Literal["file", "new", "run", "folder"]


def is_stdout(path: str) -> bool:
    """Whether a file of this name means that its content is printed."""
    return path in STDOUT


def check_outputs(outputs: Sequence[Output], inputs: Iterable[str] = ()) -> None:
    """Refuse outputs that cannot be written, or that would change what is read.

    Args:
        outputs: Everything that the command was asked to write.
        inputs: Files and folders that it reads; names of other things, such as a hub id, are passed over.

    Raises:
        UserError: An output is a device, a named pipe or a socket, or a file where a folder is meant or the other way
            round; a new folder is not empty; it lies in an input, in a system folder or where nothing can be written.
    """
    for output in outputs:
        if "\0" in str(output.path):
            raise UserError(f"{output.path}: no file can have this name: name another with {output.option}")
    read = [Path(name) for name in inputs if name and os.path.exists(name)]
    folders = [real_path(output.path) for output in outputs if output.kind != "file"]
    for output in outputs:
        _check_kind(output)
        _check_place(output, folders)
        for path in read:
            _check_apart(output, path)
    new = [output for output in outputs if output.kind == "new"]
    for folder in new:
        for other in outputs:
            if other is not folder and real_path(other.path).is_relative_to(real_path(folder.path)):
                raise UserError(f"{other.path}: lies in {folder.path}, which is written whole: name another place")


def write_output(path: str, content: bytes) -> None:
    """Write a file in one piece, or print it where `path` stands for the standard output.

    Raises:
        UserError: The path is a folder, a device, a named pipe or a socket.
    """
    if is_stdout(path):
        sys.stdout.flush()
        sys.stdout.buffer.write(content)  # in its own encoding, which a page and XML name, whatever the terminal's is
        sys.stdout.flush()
        return
    with atomic(Path(path)) as temporary:
        temporary.write_bytes(content)


def _check_kind(output: Output) -> None:
    path = output.path
    if is_remote(path):
        raise UserError(f"{remote_name(path)}: storage is only read: name a place on a disk with {output.option}")
    kind = kind_of(path)
    if is_special(path):
        raise UserError(f"{path}: {kind}, which is never written to: name a new file with {output.option}")
    if output.kind == "file":
        if kind == "a folder":
            raise UserError(f"{path}: a folder, not a file to write: name a new file with {output.option}")
        return
    if kind == "a file":
        raise UserError(f"{path}: a file, not a folder: name a new directory with {output.option}")
    if output.kind == "new":
        require_new(path)
    if output.kind == "run" and kind == "a folder" and any(path.iterdir()) and not (path / "run.json").exists():
        raise UserError(f"{path}: holds something else: name a new directory with {output.option}")


def _check_place(output: Output, folders: Sequence[Path]) -> None:
    path = real_path(output.path)
    # As it is typed, too: /proc/self/fd/1 leads to whatever file the shell opened.
    if _is_in_system(path) or _is_in_system(Path(os.path.abspath(output.path))):
        raise UserError(f"{output.path}: lies in a system folder: name another place with {output.option}")
    inside = any(path.is_relative_to(folder) for folder in folders)
    if output.kind == "file" and not inside and not path.parent.is_dir():
        raise UserError(f"{output.path}: no folder {path.parent}: make it first, or name another with {output.option}")
    nearest = path if path.is_dir() else path.parent
    while not nearest.exists():
        nearest = nearest.parent
    can_be_written = nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)
    if not can_be_written and not (output.kind == "run" and is_kept(output.path)):
        raise UserError(f"{output.path}: {nearest} cannot be written to: name another place with {output.option}")


def _is_in_system(path: Path) -> bool:
    return any(path.is_relative_to(folder) for folder in SYSTEM) and not path.is_relative_to(MEMORY)


def _check_apart(output: Output, read: Path) -> None:
    path, source = real_path(output.path), real_path(read)
    if path == source or (source.is_dir() and path.is_relative_to(source)):
        raise UserError(f"{output.path}: lies in {read}, which is read: name another place with {output.option}")
