"""Run directories: atomic files, fingerprints, and the run record."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import secrets
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from unmemorize.core.errors import UserError
from unmemorize.core.files import kind_of, require_file, require_plain
from unmemorize.core.plain import to_json

Progress = Callable[[str, int, int], None]  # stage, done, total
RECORDED = ("unmemorize", "torch", "diffusers", "transformers", "numpy", "scikit-learn", "pyarrow", "pillow")


class Source(BaseModel):
    """Where some input came from, and the hash of what it held."""

    model_config = ConfigDict(frozen=True)

    source: str
    sha256: str
    count: int


class RunRecord(BaseModel):
    """`run.json`: everything that determines a run's bytes. Times are kept apart, in `timing.json`."""

    model_config = ConfigDict(frozen=True)

    schema_version: Literal[1] = 1
    status: str
    spec: dict[str, str | int | float | list[int] | list[str] | None]
    versions: dict[str, str]
    model: dict[str, str]
    data: dict[str, Source]
    criterion: dict[str, str | float | bool | None] = {}

    def save(self, run: Path) -> None:
        """Write `run.json`."""
        with atomic(run / "run.json") as temporary:
            temporary.write_text(self.model_dump_json(indent=1), encoding="utf-8")


def load_record(run: Path) -> RunRecord | None:
    """The run's record, or None where there is no run yet.

    Raises:
        UserError: `run.json` is not one of ours.
    """
    path = run / "run.json"
    if kind_of(path) == "nothing":
        return None
    require_file(path, "name another directory with --run")
    try:
        return RunRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a run record: name another directory with --run") from error


def open_run(run: Path, record: RunRecord) -> None:
    """Start a run in a new directory, or continue the one that is there.

    Raises:
        UserError: The directory holds something else, or a run of other settings, inputs or versions.
    """
    if run.exists() and not run.is_dir():
        raise UserError(f"{run}: holds something else: name a new directory with --run")
    holds_something = run.is_dir() and any(not _TEMPORARY.search(path.name) for path in run.iterdir())
    before = load_record(run)  # after looking: another process may start the same run meanwhile
    if before is None and holds_something:
        raise UserError(f"{run}: holds something else: name a new directory with --run")
    if before is not None and before.model_copy(update={"status": record.status}) != record:
        raise UserError(f"{run}: holds a run with other {_differences(before, record)}: name another with --run")
    require_plain(run)
    for path in run.rglob(".*.tmp"):
        if _is_left(path.name):
            path.unlink(missing_ok=True)
    record.save(run)


def check_settings(run: Path, spec: Mapping[str, Any]) -> None:
    """Refuse a directory that holds a run of other settings, as far as they are known before the model is loaded.

    Args:
        run: The directory.
        spec: The settings, as a record holds them; `steps` 0 and `guidance` None stand for the model's own.

    Raises:
        UserError: A setting differs, or `run.json` is not one of ours.
    """
    before = load_record(run)
    if before is None:
        return
    known = {name: value for name, value in spec.items() if (name, value) not in (("steps", 0), ("guidance", None))}
    if differing := _unequal(before.spec, known):
        raise UserError(f"{run}: holds a run with other settings: {differing}: name another with --run")


def _differences(before: RunRecord, now: RunRecord) -> str:
    """What differs in two records, one of which is not the other: settings by name, else what kind of thing."""
    if differing := _unequal(before.spec, now.spec):
        return f"settings: {differing}"
    names = {"model": "weights of the model", "data": "inputs", "versions": "versions", "criterion": "copy criterion"}
    for name, said in names.items():
        there, here = (_plain(getattr(record, name)) for record in (before, now))
        if differing := _unequal(there, here):
            return f"{said}: {differing}"
    return "settings, inputs or versions"


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: f"{v.source}, {v.sha256[:8]}" if isinstance(v, Source) else v for name, v in values.items()}


def _unequal(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Settings that differ, as in "seeds: 1 there, 2 here"."""
    names = [name for name in here if there.get(name) != here[name]]
    return ", ".join(f"{name}: {_shown(there.get(name))} there, {_shown(here[name])} here" for name in names)


def _shown(value: Any) -> str:
    return "none" if value in ("", None, []) else ", ".join(map(str, value)) if isinstance(value, list) else str(value)


_TEMPORARY = re.compile(r"^\..*\.(?P<host>[^.]+)\.(?P<pid>\d+)\.[0-9a-f]{8}\.tmp$")


def _temporary(path: Path) -> Path:
    """A name beside `path` that no other process, on this host or another, takes."""
    return path.with_name(f".{path.name}.{_host()}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


def _host() -> str:
    return socket.gethostname().replace(".", "-")


def _is_left(name: str) -> bool:
    """Whether a process of this host that is there no more wrote the temporary file of this name."""
    parts = _TEMPORARY.search(name)
    if os.name != "posix" or parts is None or parts["host"] != _host():
        return False
    try:
        os.kill(int(parts["pid"]), 0)  # signal 0 only asks whether the process is there
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):  # another user's, or no number of a process
        return False
    return False


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers."""
    return {"python": platform.python_version()} | {name: version(name) for name in RECORDED}


def digest(chunks: Iterable[bytes]) -> str:
    """SHA-256 over byte strings, each preceded by its length so that their borders count."""
    total = hashlib.sha256()
    for chunk in chunks:
        total.update(len(chunk).to_bytes(8, "big"))
        total.update(chunk)
    return total.hexdigest()


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it over `path` if the block succeeds, delete it if not.

    Raises:
        UserError: The path is a folder, a device, a named pipe or a socket, or a link to one.
    """
    kind = kind_of(path)
    if kind not in ("a file", "nothing"):
        raise UserError(f"{path}: {kind}, which is never replaced: name a new file")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # or after a power cut the name may stand for an empty file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; it takes that name if the block succeeds and is gone if not.

    Raises:
        UserError: There is something of that name.
    """
    require_new(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def require_new(path: Path) -> None:
    """Refuse a folder that is there already, unless it is empty.

    Raises:
        UserError: It holds something, or is the working folder.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path}: not empty: name a new folder")
    if path.resolve() == Path.cwd():
        raise UserError(f"{path}: the working folder: name a new folder")


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write readable JSON in one piece."""
    with atomic(path) as temporary:
        temporary.write_text(to_json(value, indent=1), encoding="utf-8")
