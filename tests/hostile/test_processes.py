"""Whole commands as processes: none waits, starts a program, ends in a traceback, or says more than one line."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest

from hostile import EPS, complaints, fake_ghostscript, named_pipe, others, sources
from hostile.damage import damaged_folder, text
from hostile.judge import acting
from made_up_run import make_run

SECONDS = 200  # for what takes five on an idle machine
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
LOCALES = ({"LC_ALL": "C.UTF-8"}, {"LC_ALL": "C"}, ASCII, {"PYTHONIOENCODING": "latin-1"})
# What a command says on the error stream beside its one mistake; all else was said by a library.
OWN = re.compile(
    r"error: |loading .* (…|\\u2026)$|[\w -]+: [\d,]+ of [\d,]+$|.*: \d+ pictures; |about \d+ min: |.*: goes on; "
)
QUICK = ("--seeds", "1", "--steps", "2")


def command(rng: Random, folder: Path, tiny: Path, audited: Path) -> list[str]:
    """A command line, and the files that it names."""
    sources.folders(rng, folder)
    (folder / "source" / "postscript.png").write_bytes(EPS)
    if rng.random() < 0.3:
        named_pipe(folder / "source" / rng.choice(("0.png", "0.txt", "metadata.csv", "pipe.tar")))
    drawn = sources.prompts(rng, folder)
    prompts = folder / drawn.name.partition(",")[0]  # it may be a link to nowhere, which no listing has
    others.runs(audited, rng, folder)
    if rng.random() < 0.3:
        tiny = shutil.copytree(tiny, folder / "model", copy_function=shutil.copyfile)
        damaged_folder(rng, tiny)
    typed = rng.choice((text(rng).replace("\0", "").encode("utf-8", "replace").decode(), "caf\udce9", "an owl"))
    model, read = str(tiny), ("--prompts", str(prompts))
    lines = (
        ("data", "source", "--run", "data"),
        ("data", str(prompts), "--out", typed),
        ("detect", model, *read, *QUICK),
        ("audit", model, *read, "--references", "source", "--dry-run", *QUICK),
        ("check", model, "source/postscript.png", "--controls", "source"),
        ("explain", model, typed, *QUICK),
        ("generate", model, typed, "--pictures", "1", "--steps", "2"),
        ("report", "run"),
        ("compare", "run", str(audited), "--out", typed),
        ("export", "run"),
    )
    return list(rng.choice(lines))


def wrong(words: Sequence[str], folder: Path, place: dict[str, str]) -> str:
    """What a command does that none may; empty where it does nothing of the kind."""
    mark = folder / "started"
    programs = fake_ghostscript(folder / "bin", mark)
    environment = os.environ | place | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "TMPDIR": str(folder)}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "unmemorize", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            cwd=folder,
            env=environment,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"over {SECONDS} s"
    encoding = place.get("PYTHONIOENCODING", "utf-8")
    printed, said = done.stdout.decode(encoding), done.stderr.decode(encoding)
    if mark.exists():
        return "starts a program"
    if done.returncode not in (0, 2) or len(complaints(said)) != (done.returncode == 2):
        return f"exit code {done.returncode}: {said[-900:]}"
    if foreign := [line for line in said.splitlines() if line and not OWN.match(line)]:
        return f"a library says: {foreign[0]!r:.300}"
    return f"acts on the terminal: {printed + said!r:.600}" if acting(printed + said) else ""


@pytest.mark.timeout(SECONDS * 100)
def test_no_command_waits_or_ends_in_a_traceback(request, tiny_folder, tmp_path):
    """As many as are asked for, in four locales, beside named pipes and PostScript under the name of a PNG."""
    audited = make_run(tmp_path / "audited", prompts=12, size=8)
    faults = []
    for number in range(request.config.getoption("hostile_processes")):
        rng = Random(f"{request.config.getoption('hostile_seed')}-process-{number}")
        folder = tmp_path / f"{number}"
        folder.mkdir()
        words, place = command(rng, folder, tiny_folder, audited), rng.choice(LOCALES)
        if said := wrong(words, folder, place):
            faults.append(f"{number} {words!r:.300} {place}: {said}")
    assert not faults, "\n".join(faults)
