"""Run directories: atomic files, fingerprints, and the run record."""

from __future__ import annotations

import atexit
import errno
import hashlib
import os
import platform
import re
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from unmemorize.core.criteria import Criterion
from unmemorize.core.errors import UserError
from unmemorize.core.files import kind_of, real_path, require_file, require_plain, walk
from unmemorize.core.plain import from_json, to_json
from unmemorize.core.storage import STANDS, fetch, is_remote, put, remote_name

Progress = Callable[[str, int, int], None]  # stage, done, total


def quiet(stage: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


FINISHED = "finished"
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
    criterion: Annotated[Criterion | None, BeforeValidator(lambda value: value or None)] = None

    def save(self, run: Path) -> None:
        """Write `run.json`."""
        with atomic(run / "run.json") as temporary:
            temporary.write_text(self.model_dump_json(indent=1), encoding="utf-8")

    @property
    def decisive(self) -> dict[str, Any]:
        """What has to be equal for a run to be continued, by name.

        Files are known by what they hold: a run goes on where its inputs were moved, or are mounted elsewhere.
        """
        settings = {name: value for name, value in self.spec.items() if name not in self.places}
        facts = {"weights of the model": self.model.get("fingerprint")}
        facts |= {f"content of {name}": source.sha256[:8] for name, source in self.data.items()}
        criterion = {} if self.criterion is None else asdict(self.criterion)
        return facts | settings | {f"criterion's {k}": v for k, v in criterion.items()} | self.versions

    @property
    def places(self) -> set[str]:
        """Settings that only say where something is: what is there decides, and is recorded."""
        return {"model", "sscd", *self.data}

    @property
    def digest(self) -> str:
        """SHA-256 of what is decisive."""
        return digest([to_json(self.decisive).encode()])


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


@dataclass(frozen=True)
class Run:
    """A run directory that is worked in, and its record."""

    folder: Path
    record: RunRecord

    @classmethod
    @contextmanager
    def open(cls, folder: Path, record: RunRecord) -> Iterator[Run]:
        """Start a run in a new directory, or continue the one that is there; it is finished if the block succeeds.

        Raises:
            UserError: The directory holds something else, or a run of other settings, inputs or versions.
        """
        run = cls(folder, _opened(folder, record))
        yield run
        if not run.is_kept:
            run.record.model_copy(update={"status": FINISHED}).save(folder)

    @property
    def is_kept(self) -> bool:
        """Whether it is only read; see `is_kept`."""
        return self.record.status == FINISHED

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the wall seconds of a stage to `timing.json`, apart from what is reproducible."""
        path = self.folder / "timing.json"
        since = time.perf_counter()
        try:
            yield
        finally:
            fresh: dict[str, Any] = {"started": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": {}}
            timing = _timing(path) or fresh
            seconds = timing["seconds"]
            seconds[stage] = round(seconds.get(stage, 0) + time.perf_counter() - since, 2)
            write_json(path, timing)


def _timing(path: Path) -> dict[str, Any] | None:
    """What `timing.json` holds, if it is there and whole: it decides nothing, so that its loss stops nothing."""
    try:
        timing = from_json(path.read_bytes())
        known = all(isinstance(spent, int | float) for spent in timing["seconds"].values())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return timing if known else None


def _opened(run: Path, record: RunRecord) -> RunRecord:
    """The record of the run that is begun, or continued: then it is the one that is there."""
    if run.exists() and not run.is_dir():
        raise UserError(f"{run}: holds something else: name a new directory with --run")
    holds_something = run.is_dir() and any(not _TEMPORARY.search(path.name) for path in run.iterdir())
    before = load_record(run)  # after looking: another process may start the same run meanwhile
    if before is None and holds_something:
        raise UserError(f"{run}: holds something else: name a new directory with --run")
    if before is not None and before.decisive != record.decisive:
        said = "; ".join(_differences(before.decisive, record.decisive))
        raise UserError(f"{run}: holds a run with other settings, inputs or versions: {said}: name another with --run")
    if before is not None and is_kept(run):
        return before
    require_plain(run)
    remove_left(run)
    opened = (before or record).model_copy(update={"status": record.status})
    opened.save(run)
    return opened


def is_kept(run: Path) -> bool:
    """Whether a run is finished and lies where nothing can be written: what it found is read again, not made."""
    record = None if os.access(run, os.W_OK) else load_record(run)
    return record is not None and record.status == FINISHED


def _differences(there: Mapping[str, Any], here: Mapping[str, Any], most: int = 3) -> list[str]:
    """The settings that differ, as in "steps: 50 there, 20 here"; not more than so many."""
    names = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    said = [f"{name}: {_told(there, name)} there, {_told(here, name)} here" for name in names[:most]]
    return [*said, f"and {len(names) - most} more"] if len(names) > most else said


def _told(facts: Mapping[str, Any], name: str) -> str:
    value = facts.get(name)
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    return "nothing" if value is None or value == "" else str(value)


def remove_left(folder: Path) -> None:
    """Delete the temporary files and folders that processes of this host left when they were killed."""
    for path in walk(folder):
        if _is_left(path.name) and path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif _is_left(path.name):
            path.unlink(missing_ok=True)


def _remove_left_of(path: Path) -> None:
    """Delete the temporary folders beside `path`, of its name, that processes of this host left."""
    for left in path.parent.iterdir():
        if left.name.startswith(f".{path.name}.") and _is_left(left.name):
            shutil.rmtree(left, ignore_errors=True)


def default_run(run: str, model: str, command: str = "") -> Path:
    """The run directory that was named, or `runs/COMMAND-MODEL`; what stands for it, where it is on object storage.

    Raises:
        UserError: The storage does not answer, or refuses.
    """
    name = Path(model).name
    return on_disk(Path(run)) if run else Path("runs") / (f"{command}-{name}" if command else name)


def on_disk(run: Path) -> Path:
    """A run directory as a folder of this machine: itself, or what stands for it, where it is on object storage.

    That is a new temporary folder with everything that is there. Each file that is written in it, by whichever process
    of this machine, is put on the storage before it takes its name; it is deleted when this process ends.

    Raises:
        UserError: The storage does not answer, or refuses, or is only read.
    """
    if not is_remote(run):
        return run
    if str(run).startswith("hf:"):
        raise UserError(f"{remote_name(run)}: the hub is only read: name a place on a disk, s3:// or gs://")
    place = Path(tempfile.gettempdir()) / STANDS
    _remove_left_of(place)
    stands = _temporary(place)
    atexit.register(shutil.rmtree, stands, ignore_errors=True)
    folder = stands / run
    folder.mkdir(parents=True)
    fetch(folder)
    return folder


def check_settings(run: Path, spec: Mapping[str, Any]) -> None:
    """Refuse a directory that holds a run of other settings, as far as they are known before the model is loaded.

    Args:
        run: The directory.
        spec: The settings, as a record holds them; `steps` 0, `guidance` None and `dtype` "" stand for the model's own.

    Raises:
        UserError: A setting differs, or `run.json` is not one of ours.
    """
    before = load_record(run)
    if before is None:
        return
    unset = (("steps", 0), ("guidance", None), ("dtype", ""))
    known = {name: value for name, value in spec.items() if name not in before.places and (name, value) not in unset}
    there = {name: value for name, value in before.spec.items() if name in known}
    if said := _differences(there, {name: known[name] for name in there}):
        raise UserError(f"{run}: holds a run with other settings: {'; '.join(said)}: name another with --run")


MORE_ROOM = "make room and start the same command again: what is done is kept"
UNWRITABLE = {  # what the system says, and what to do
    errno.ENOSPC: f"the disk is full: {MORE_ROOM}",
    errno.EDQUOT: f"the quota is used up: {MORE_ROOM}",
    errno.EROFS: "on a file system that is read-only: name a place that can be written, or copy it to one",
}
_TEMPORARY = re.compile(r"^\..*\.(?P<host>[^.]+)\.(?P<pid>\d+)\.[0-9a-f]{8}\.tmp$")


def _temporary(path: Path) -> Path:
    """A name beside `path` that no other process, on this host or another, takes."""
    return path.with_name(f".{path.name}.{_host()}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


def _host() -> str:
    return socket.gethostname().replace(".", "-")


def _is_left(name: str) -> bool:
    """Whether a process of this host that is there no more wrote the temporary file of this name."""
    parts = _TEMPORARY.search(name)
    return parts is not None and is_gone(parts["host"], int(parts["pid"]))


def this_process() -> tuple[str, int]:
    """The names of the host and of the process."""
    return _host(), os.getpid()


def is_gone(host: str, pid: int) -> bool:
    """Whether a process was on this host and is no more; False where that cannot be known."""
    if os.name != "posix" or host != _host():
        return False
    try:
        os.kill(pid, 0)  # signal 0 only asks whether the process is there
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):  # another user's, or no number of a process
        return False
    return False


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers."""
    return {"python": platform.python_version()} | {name: version(name) for name in RECORDED}


def require_same_versions(run: Path) -> None:
    """Refuse to work on a run that was begun with other versions, or that is not there.

    Raises:
        UserError: One of the two.
    """
    record = load_record(run)
    if record is None:
        raise UserError(f"{run}: no run is here: name a directory that every machine sees with --run")
    here = versions()
    here |= {name: version(name) for name in record.versions if name not in here}
    if said := _differences(record.versions, here):
        raise UserError(f"{run}: begun with other versions: {'; '.join(said)}: install the same everywhere")


class Digest(Protocol):
    """A hash that is being made, as `hashlib` makes it."""

    def update(self, data: bytes, /) -> None:
        """Add bytes."""


def digest(chunks: Iterable[bytes]) -> str:
    """SHA-256 over byte strings, each preceded by its length so that their borders count."""
    total = hashlib.sha256()
    add_to_digest(total, chunks)
    return total.hexdigest()


def add_to_digest(total: Digest, chunks: Iterable[bytes]) -> None:
    """Add byte strings to a hash as `digest` does."""
    for chunk in chunks:
        total.update(len(chunk).to_bytes(8, "big"))
        total.update(chunk)


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it over `path` if the block succeeds, delete it if not.

    Raises:
        UserError: The path is a folder, a device, a named pipe or a socket, or a link to one.
    """
    kind = kind_of(path)
    if kind not in ("a file", "nothing"):
        raise UserError(f"{path}: {kind}, which is never replaced: name a new file")
    temporary = _temporary(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())  # or after a power cut the name may stand for an empty file
            put(temporary, path)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say what to do where a path cannot be written, for want of room or since its file system is read-only.

    Raises:
        UserError: One of the two.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        raise UserError(f"{path}: {UNWRITABLE[error.errno]}") from error


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; it takes that name if the block succeeds and is gone if not.

    Raises:
        UserError: There is something of that name.
    """
    require_new(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_left_of(path)
    temporary = _temporary(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """Yield a new temporary folder in `folder` that no other process takes, and delete it at the end."""
    temporary = _temporary(folder / "scratch")
    temporary.mkdir(parents=True)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def require_new(path: Path) -> None:
    """Refuse a folder that is there already, unless it is empty.

    Raises:
        UserError: It holds something, or is the working folder.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path}: not empty: name a new folder")
    if real_path(path) == Path.cwd():
        raise UserError(f"{path}: the working folder: name a new folder")


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote.

    Raises:
        UserError: It is not there, or damaged.
    """
    try:
        value = from_json(path.read_bytes())
        if not isinstance(value, dict):
            raise ValueError("no object")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: damaged, or not there: start the same command again, which makes it anew") from error
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write readable JSON in one piece."""
    with atomic(path) as temporary:
        temporary.write_text(to_json(value, indent=1), encoding="utf-8")
