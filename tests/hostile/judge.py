"""What no input may do: raise what no command expects, wait, start a program, write elsewhere, act on a terminal."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmemorize.core.errors import UnmemorizeError

LIMIT = 30.0  # seconds of processor time: others may have work for the machine
PATIENCE = 300.0  # seconds that an input may take on a busy machine
LONGEST = 700  # characters of what a command says of a mistake
DIRECTIONS = {"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"}
PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn", "os.fork")
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate", "shutil.move")


@dataclass(frozen=True)
class Input:
    """Something hostile: what it is, and what is done with it."""

    name: str
    use: Callable[[], object]


class _Waited(BaseException):
    """The time limit."""


def acting(text: str) -> list[str]:
    """Characters by which a text acts on a terminal, by Unicode's own categories, but for the ends of lines."""
    found = []
    for character in text:
        acts = unicodedata.category(character) in ("Cc", "Zl", "Zp", "Cs")
        if (acts and character != "\n") or unicodedata.bidirectional(character) in DIRECTIONS:
            found.append(character)
    return found


def violation(given: Input, folder: Path, printed: Callable[[], str]) -> str:
    """What an input does that none may; empty where it is read, or refused in a line.

    Args:
        given: The input.
        folder: The only place where anything may be written.
        printed: What was printed since the last call.
    """
    from unmemorize.cli.terminal import complain

    printed()
    started = time.process_time()
    with _watched(folder) as acts:
        try:
            with _limited():
                given.use()
        except (UnmemorizeError, OSError) as error:  # as `main` does
            complain(str(error))
        except SystemExit as stop:
            if stop.code not in (None, 0, 1, 2):
                return f"exit code {stop.code}"
        except _Waited:
            return f"over {LIMIT:.0f} s of processor time, or {PATIENCE:.0f} s"
        except Exception:
            return "traceback: " + "".join(traceback.format_exc().splitlines(True)[-7:])
    if time.process_time() - started > LIMIT:
        return f"{time.process_time() - started:.0f} s of processor time"
    return acts[0] if acts else wrong_line(printed())


def wrong_line(said: str) -> str:
    """What is wrong with what was printed; one line that says a mistake is right, and so is nothing."""
    lines = said.splitlines()
    if len(lines) > 1 or (lines and not lines[0].startswith("error: ")):
        return f"printed {said[:600]!r}"
    if acting(said):
        return f"acts on the terminal: {said[:600]!r}"
    return f"a line of {len(said)} characters" if len(said) > LONGEST else ""


@contextmanager
def _limited() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise _Waited

    handlers = [(number, signal.signal(number, stop)) for number in (signal.SIGALRM, signal.SIGPROF)]
    left, _ = signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    signal.setitimer(signal.ITIMER_PROF, LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, left)  # pytest's own limit, a little later
        for number, handler in handlers:
            signal.signal(number, handler)


@dataclass
class _Watch:
    folder: Path
    acts: list[str]


_watch: list[_Watch] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watch:
        return
    now = _watch[-1]
    if event in PROGRAMS:
        now.acts.append(f"starts a program: {event} {arguments!r:.200}")
    elif event == "socket.connect":
        now.acts.append(f"connects: {arguments!r:.200}")
    elif event in ("os.remove", "os.rmdir") and arguments[-1] != -1:
        return  # a name in a folder that is open: `shutil.rmtree` of one that was checked
    elif event in CHANGES or (event == "open" and _writes(arguments)):
        _check_place(now, event, arguments[0])


def _writes(arguments: tuple[Any, ...]) -> bool:
    _, mode, flags = arguments
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def _check_place(now: _Watch, event: str, path: object) -> None:
    if not isinstance(path, str | bytes | os.PathLike):
        return
    place = Path(os.path.realpath(os.fsdecode(path)))
    if not place.is_relative_to(now.folder) and "__pycache__" not in place.parts:
        now.acts.append(f"writes outside: {event} {place}")


@contextmanager
def _watched(folder: Path) -> Iterator[list[str]]:
    """What is done that may not be, while the block runs."""
    if not getattr(sys, "_unmemorize_watched", False):  # a hook cannot be taken away: one is enough
        sys.addaudithook(_hook)
        sys._unmemorize_watched = True  # type: ignore[attr-defined]
    watch = _Watch(folder.resolve(), [])
    _watch.append(watch)
    try:
        yield watch.acts
    finally:
        _watch.pop()
