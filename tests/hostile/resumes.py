"""Hostile run directories: the same command goes on in a run of every kind that was damaged since."""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from random import Random
from unittest.mock import patch

import numpy as np
import torch

from hostile import complaints
from hostile.damage import damaged_folder
from hostile.judge import Input, acting
from unmemorize import cli
from unmemorize.core.sample import Sampler, generate
from unmemorize.data.pictures import save_image
from unmemorize.models.load import load
from unmemorize.stages import locality
from unmemorize.study.copies import Match

CAPTIONS = ("an owl on a fence", "a green bicycle")
COMMANDS = {
    "audit": "MODEL --prompts prompts.txt --references made --ordinary ordinary.txt --seeds 1 --pictures 1 --steps 2 "
    "--attack 1 --attack-updates 1 --attack-method dori:batch=1 --mitigation wanda:sparsity=0.4 --explain 1",
    "detect": "MODEL --prompts prompts.txt --seeds 1",
    "triggers": "MODEL --prompts prompts.txt --references made --steps 1 --repeats 1 --pictures 1 --limit 1",
    "attack": "MODEL --targets made --controls controls --method dori:batch=1 --updates 1 --pictures 1 --steps 2",
    "locality": "MODEL --target made/0.png --references made --prompts prompts.txt --ordinary ordinary.txt --updates 1 "
    "--inits 4 --pictures 1 --steps 1 --method wanda:sparsity=0.1",
    "mitigate": "MODEL --targets made --controls controls --updates 1 --pictures 1 --steps 2 --attack-updates 1 "
    "--method finetune",
    "data": "made",
}


@dataclass(frozen=True)
class Finished:
    """Finished runs of every command, each made when it is first asked for, and the files that they read."""

    tiny: Path
    folder: Path

    def words(self, command: str) -> list[str]:
        """What is typed for a command."""
        if not (self.folder / "made").exists():
            self._make_inputs()
        names = ("made", "made/0.png", "controls", "prompts.txt", "ordinary.txt")
        places = {name: str(self.folder / name) for name in names} | {"MODEL": str(self.tiny)}
        return [command, *(places.get(word, word) for word in COMMANDS[command].split())]

    def run(self, command: str) -> Path:
        """The command's run directory."""
        run = self.folder / command / "run"
        if not run.exists():
            code, printed = run_command(self.words(command), run)
            assert code == 0, printed
        return run

    def _make_inputs(self) -> None:
        model = load(str(self.tiny))
        made = generate(model, model.encode(CAPTIONS), seeds=[0, 0], sampler=Sampler(2))
        noise = [np.random.default_rng(k).random((3, 32, 32), dtype=np.float32) for k in range(8)]
        for k, (picture, caption) in enumerate(zip(made, CAPTIONS, strict=True)):
            save_image(picture, self.folder / "made" / f"{k}.png")
            (self.folder / "made" / f"{k}.txt").write_text(caption)
        for k, pixels in enumerate(noise):
            save_image(torch.from_numpy(pixels), self.folder / "controls" / f"{k}.png")
            (self.folder / "controls" / f"{k}.txt").write_text(f"word{k} other{k} thing{k}")
        (self.folder / "prompts.txt").write_text("\n".join(CAPTIONS))
        (self.folder / "ordinary.txt").write_text("".join(f"a plain thing number {i}\n" for i in range(40)))


def run_command(words: Sequence[str], run: Path) -> tuple[int, str]:
    """Run a command in a run directory; its exit code, and what it printed."""
    printed, code = io.StringIO(), 0
    out = ["--out", str(run.with_name("out"))] if words[0] == "mitigate" else []
    run.parent.mkdir(exist_ok=True)
    with (
        redirect_stdout(printed),
        redirect_stderr(printed),
        patch.object(sys, "argv", ["unmemorize", *words, "--run", str(run), *out]),
        patch.object(tempfile, "tempdir", str(run.parent)),
        patch.object(locality._Study, "matches", _matches),
    ):
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, printed.getvalue()


def _matches(study, cond):
    """As if most embeddings gave the first picture, and the prompts one each."""
    if cond.ids is None:
        return [[Match("0.png", 0, 0, "verbatim")] for _ in cond.embeds]
    return [[Match(f"{i % 2}.png", 0, 0, "verbatim")] for i in range(len(cond))]


def resumes(sound: Finished, rng: Random, folder: Path) -> Input:
    """A finished run with one or two damaged files, in which its command goes on, from the end or from a shard."""
    name = rng.choice(list(COMMANDS))
    words = sound.words(name)
    run = shutil.copytree(sound.run(name), folder / "run", copy_function=shutil.copyfile)
    if rng.random() < 0.5 and name == "audit":
        rng.choice(sorted(run.glob("scores/*.parquet"))).unlink()
    damaged = [damaged_folder(rng, run) for _ in range(rng.choice((1, 1, 2)))]

    def use() -> None:
        code, printed = run_command(words, run)
        assert acting(printed) == []
        said = complaints(printed)
        assert len(said) == (code == 2), printed[-2000:]
        for line in said:
            print(line, file=sys.stderr)

    return Input(f"{name}: {damaged}", use)
