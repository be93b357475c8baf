"""Files that are read, wherever they are: on a disk, or on object storage as s3://, gs:// or hf://.

A path on object storage is an ordinary `Path` of such a name, which loses a slash: `s3:/bucket/key`. It is only read;
what is written, a run directory above all, lies on a file system, where a file can be made once and renamed.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from unmemorize.core.errors import UserError

BUFFER = 1 << 20  # bytes that are asked for at once
_remote = re.compile(r"(s3|gs|hf):/+(.+)")


def is_remote(path: Path | str) -> bool:
    """Whether a path is on object storage."""
    return _remote.fullmatch(str(path)) is not None


def remote_name(path: Path | str) -> str:
    """How a path on object storage is written."""
    return _remote.sub(r"\1://\2", str(path))


def opened(path: Path) -> BinaryIO:
    """A file's bytes, to be read from the start, and on a disk or object storage from anywhere.

    Raises:
        OSError: It cannot be read.
        UserError: The storage does not answer, or refuses.
    """
    if not is_remote(path):
        return path.open("rb")
    with _asking(path):
        files, key = _place(path)
        return io.BufferedReader(_Remote(path, files.open_input_file(key)), BUFFER)


class _Remote(io.RawIOBase):
    """A file on object storage. Where reading it fails, that ends the work: it is no damage of the file."""

    def __init__(self, path: Path, file: Any) -> None:
        self._path, self._file = path, file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._file.seek(offset, whence)
        return self.tell()

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        with _asking(self._path):
            content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        self._file.close()
        super().close()


def kind_of_remote(path: Path) -> str:
    """What is at a path on object storage: "a file", "a folder" or "nothing".

    Raises:
        UserError: The storage does not answer, or refuses.
    """
    from pyarrow.fs import FileType

    with _asking(path):
        files, key = _place(path)
        kind = files.get_file_info(key).type
    return {FileType.File: "a file", FileType.Directory: "a folder"}.get(kind, "nothing")


def files_in(folder: Path) -> list[Path]:
    """All files in a folder and those below it, in order.

    Raises:
        UserError: The storage does not answer, or refuses.
    """
    if not is_remote(folder):
        return sorted(path for path in folder.rglob("*") if path.is_file())
    from pyarrow.fs import FileSelector

    with _asking(folder):
        files, key = _place(folder)
        there = files.get_file_info(FileSelector(key, recursive=True))
    return sorted(folder / info.path[len(key) :].lstrip("/") for info in there if info.is_file)


def stamp_of(path: Path) -> tuple[int, int]:
    """A file's size in bytes and when it was changed, in nanoseconds.

    Raises:
        UserError: The storage does not answer, or refuses.
    """
    if not is_remote(path):
        stat = path.stat()
        return stat.st_size, stat.st_mtime_ns
    with _asking(path):
        files, key = _place(path)
        info = files.get_file_info(key)
    return info.size, info.mtime_ns or 0


def _place(path: Path) -> tuple[Any, str]:
    """The file system that a path is on, and the path there."""
    match = _remote.fullmatch(str(path))
    assert match is not None
    scheme, key = match[1], match[2]
    return _file_system(scheme, key.partition("/")[0]), key


@lru_cache(maxsize=64)
def _file_system(scheme: str, bucket: str) -> Any:
    from pyarrow import fs

    if scheme == "hf":
        from huggingface_hub import HfFileSystem

        return fs.PyFileSystem(fs.FSSpecHandler(HfFileSystem()))
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
    if scheme == "s3" and endpoint:  # of another provider, which has no regions to look up
        return fs.S3FileSystem(endpoint_override=endpoint)
    files, _ = fs.FileSystem.from_uri(f"{scheme}://{bucket}")
    return files


@contextmanager
def _asking(path: Path) -> Iterator[None]:
    """Say in a line what storage answered that does not give what is asked for."""
    try:
        yield
    except (UserError, FileNotFoundError):
        raise
    except Exception as error:  # of whichever library asked: the hub's has those of its own for what fails on the way
        said = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{remote_name(path)}: cannot be read: {said}: check the name, the credentials and the network"
        ) from error
