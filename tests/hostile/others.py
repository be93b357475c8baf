"""Hostile runs, models, command lines and texts, made from a seeded generator in an empty folder."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import fields
from pathlib import Path
from random import Random
from unittest.mock import patch

from rich.console import Console
from rich.table import Table

from hostile.damage import NUMBERS, damaged_folder, text, value
from hostile.judge import Input, acting
from unmemorize import cli
from unmemorize.cli import terminal
from unmemorize.core.outputs import Output, check_outputs
from unmemorize.core.sample import Sampler, generate
from unmemorize.core.specs import AttackSpec, AuditSpec, DetectSpec, LocalitySpec, LocateSpec, MitigateSpec, TriggerSpec
from unmemorize.models.load import load
from unmemorize.report.compare import build_comparison
from unmemorize.report.rebuild import rebuild_report
from unmemorize.stages.export import export_copied


def runs(sound: Path, rng: Random, folder: Path) -> Input:
    """A run that was damaged since an audit made it: its page, its comparison with a sound one, what is exported."""
    run = shutil.copytree(sound, folder / "run", copy_function=shutil.copyfile)
    names = [damaged_folder(rng, run) for _ in range(rng.choice((1, 1, 2)))]
    uses: dict[str, Callable[[], object]] = {
        "report": lambda: rebuild_report(run),
        "compare": lambda: build_comparison(run, sound, folder / "compare.html"),
        "export": lambda: export_copied(run, folder / "copied"),
    }
    what = rng.choice(list(uses))

    def use() -> None:
        uses[what]()
        for page in folder.rglob("*.html"):
            content = page.read_text(encoding="utf-8")
            assert not [part for part in ("<script>alert", "\0", "\x1b") if part in content]

    return Input(f"{what}: {names}", use)


def models(sound: Path, rng: Random, folder: Path) -> Input:
    """A pipeline's folder with a damaged file: it is loaded, and a picture is sampled with it."""
    place = shutil.copytree(sound, folder / "model", copy_function=shutil.copyfile)
    name = damaged_folder(rng, place)

    def use() -> None:
        model = load(str(place), device="cpu")
        generate(model, model.encode(["a red boat"]), seeds=[0], sampler=Sampler(2))

    return Input(name, use)


SPECS = {
    "attack": AttackSpec,
    "audit": AuditSpec,
    "detect": DetectSpec,
    "locality": LocalitySpec,
    "locate": LocateSpec,
    "mitigate": MitigateSpec,
    "triggers": TriggerSpec,
}


def arguments(rng: Random, folder: Path) -> Input:
    """A command line that is refused: a model that is not there, an option of any value, outputs anywhere."""
    command = rng.choice((*SPECS, "data", "report", "compare", "export", "methods", "generate", "explain"))
    words = [command, "./nowhere"]
    for _ in range(rng.randrange(1, 4)):
        known = SPECS.get(command)
        names = [field.name for field in fields(known)] if known else ["out", "run", "json", "evidence"]
        option = rng.choice((*names, "run", "out", "part", text(rng)[:30]))
        words += [f"--{option.replace('_', '-')}", rng.choice((str(rng.choice(NUMBERS)), text(rng)))]
    words = [word.replace("\0", "").encode("utf-8", "replace").decode() for word in words]

    def use() -> None:
        with patch.object(sys, "argv", ["unmemorize", *words]), patch.object(Path, "cwd", lambda: folder):
            cli.main()

    return Input(str(words)[:300], use)


def outputs(rng: Random, folder: Path) -> Input:
    """Where somebody wants results to go."""
    (folder / "there").mkdir()
    (folder / "file").write_text("x")
    (folder / "loop").symlink_to("loop")
    names = (
        "there",
        "file",
        "file/x",
        "loop",
        "loop/x",
        "there/..",
        "a" * 300,
        "/dev/null",
        "/proc/self/mem",
        text(rng),
    )
    places = [folder / rng.choice(names) for _ in range(2)]
    kinds = [rng.choice(("file", "new", "run", "folder")) for _ in places]
    given = [Output("--out", place, kind) for place, kind in zip(places, kinds, strict=True)]
    return Input(str(given)[:300], lambda: check_outputs(given, [str(folder / rng.choice(names))]))


def texts(rng: Random, folder: Path) -> Input:
    """A text that is said, complained of, typed next, shown in a table and printed as JSON."""
    given, other = text(rng), value(rng)

    def use() -> None:
        file = io.StringIO()
        screen = Console(file=file, force_terminal=True, color_system=None, width=rng.choice((20, 80, 200)))
        table = Table("a", "b")
        with patch.object(terminal, "out", screen), patch.object(terminal, "errors", screen), redirect_stdout(file):
            terminal.say(given, to=screen)
            terminal.complain(given)
            terminal.next_step("explain", given)
            terminal.add_row(table, given, other)
            screen.print(table)
        printed = io.StringIO()
        with redirect_stdout(printed):
            terminal.print_json({"a": other, given: 1})
        json.loads(printed.getvalue(), parse_constant=lambda name: 1 / 0)
        assert acting(file.getvalue() + printed.getvalue()) == []

    return Input(repr(given)[:300], use)
