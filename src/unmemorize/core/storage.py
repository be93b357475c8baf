"""Files wherever they are: on a disk, or on object storage as s3://, gs:// or hf://.

A path on object storage is an ordinary `Path` of such a name, which loses a slash: `s3:/bucket/key`. It is only read. A
run directory there is worked on by way of a folder on this machine that stands for it (`core.run.on_disk`), and whose
own path ends in the other one: whatever process writes a file in it knows from the path alone where it is to be put.
"""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from unmemorize.core.errors import UserError

BUFFER = 1 << 20  # bytes that are asked for at once
AT_ONCE = 16  # files that are fetched at the same time
STANDS = "storage"  # in the name of a temporary folder that stands for object storage
_remote = re.compile(r"(s3|gs|hf):/+(.+)")
_stand_in = re.compile(rf"(?:/[^/:'\"]+)*/\.{STANDS}\.[^/]+\.tmp/(s3|gs):/")


def is_remote(path: Path | str) -> bool:
    """Whether a path is on object storage."""
    return _remote.fullmatch(str(path)) is not None


def remote_name(path: Path | str) -> str:
    """How a path on object storage is written."""
    return _remote.sub(r"\1://\2", str(path))


def by_name(text: str) -> str:
    """A text in which folders that stand for object storage are named as that is."""
    return _stand_in.sub(r"\1://", text)


def put(content: Path, path: Path) -> None:
    """Put a file's content on object storage in one piece, where `path` lies in a folder that stands for it.

    Raises:
        UserError: The storage does not answer, or refuses.
    """
    remote = Path(by_name(str(path)))
    if not is_remote(remote):
        return
    from pyarrow.fs import LocalFileSystem, copy_files

    with _asking(remote, "written"):
        files, key = _place(remote)
        copy_files(str(content), key, LocalFileSystem(), files)


def fetch(folder: Path) -> None:
    """Bring the files that a folder lacks from the object storage that it stands for, if it does.

    Raises:
        UserError: The storage does not answer, or refuses.
    """
    remote = Path(by_name(str(folder)))
    if not is_remote(remote):
        return

    def bring(path: Path) -> None:
        target = folder / path.relative_to(remote)
        if target.exists() or ".." in target.parts:  # a key may be anything
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        whole = target.with_name(f".{target.name}.coming")
        with opened(path) as file, whole.open("wb") as copy:
            shutil.copyfileobj(file, copy, BUFFER)
        os.replace(whole, target)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in pool.map(bring, files_in(remote)):
            pass


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
        there = files.get_file_info(FileSelector(key, allow_not_found=True, recursive=True))
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
        return fs.S3FileSystem(endpoint_override=endpoint, allow_delayed_open=True)  # one PUT a small file
    files, _ = fs.FileSystem.from_uri(f"{scheme}://{bucket}")
    return files


@contextmanager
def _asking(path: Path, done: str = "read") -> Iterator[None]:
    """Say in a line what storage answered that does not do what is asked for: a file is to be `done`."""
    try:
        yield
    except (UserError, FileNotFoundError):
        raise
    except Exception as error:  # of whichever library asked: the hub's has those of its own for what fails on the way
        said = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{remote_name(path)}: cannot be {done}: {said}: check the name, the credentials and the network"
        ) from error
