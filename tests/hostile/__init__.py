"""Files that nobody should open, and pictures that start a program where Pillow is free to choose the format."""

from __future__ import annotations

import os
import stat
from pathlib import Path

EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 8 8
%%EndComments
0 0 8 8 rectfill
showpage
%%EOF
"""
XPM = b'/* XPM */\nstatic char * a[] = {\n"1 1 1 1",\n"a c #ff0000",\n"a"\n};\n'


def fake_ghostscript(folder: Path, mark: Path) -> Path:
    """A folder for PATH with a `gs` that leaves a mark when it is started."""
    folder.mkdir()
    program = folder / "gs"
    program.write_text(f"#!/bin/sh\ntouch {mark}\n")
    program.chmod(0o755)
    return folder


def named_pipe(path: Path) -> Path:
    path.unlink(missing_ok=True)  # what was drawn there before
    os.mkfifo(path)
    return path


def is_pipe(path: Path) -> bool:
    return stat.S_ISFIFO(path.lstat().st_mode)


def complaints(printed: str) -> list[str]:
    """The lines on the error stream, but for those that say what a command is doing."""
    return [line for line in printed.splitlines() if line.startswith("error: ")]
