"""Commands that several processes share: the bytes of one process alone, whoever of them is killed, and when."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import commands
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pictures import draw, folder_of, png

PATIENCE = 800  # seconds: each process loads torch, on a machine that may be busy
pytestmark = pytest.mark.timeout(900)
SHARED = ("detect", "generate", "attack", "data")
KILLS = [(command, "all") for command in ("generate", "data", "triggers")]
KILLS += [(command, "the first") for command in ("detect", "attack")]
WORDS = ("an owl on a fence", "a red kite over the bay", "the old harbour at dusk", "two plain boats in the rain")


@pytest.fixture(scope="module")
def inputs(tiny_folder, tmp_path_factory):
    """A model, prompts, pictures, and a training set in eight row groups."""
    folder = tmp_path_factory.mktemp("inputs")
    shutil.copytree(tiny_folder, folder / "model")
    (folder / "prompts.txt").write_text("".join(f"{WORDS[i % 4]} {i}\n" for i in range(70)))
    (folder / "many.txt").write_text("".join(f"{WORDS[i % 4]} {i}\n" for i in range(200)))
    (folder / "ordinary.txt").write_text("".join(f"a plain picture of thing {i}\n" for i in range(40)))
    for name, first, count in (("targets", 0, 20), ("references", 50, 30)):
        rows = [(f"p{i}", draw(i, size=32), f"{WORDS[i % 4]} {i}") for i in range(first, first + count)]
        folder_of(folder / name, rows)
    captions = [f"{WORDS[i % 4]} {i}" for i in range(32)]
    pictures = [png(draw(int(i))) for i in np.arange(32) // 2]
    pq.write_table(pa.table({"caption": captions, "image": pictures}), folder / "set.parquet", row_group_size=4)
    return folder


def start(command, inputs, run, workers, launcher="local", *kill):
    typed = [sys.executable, commands.__file__, command, inputs, run, workers, launcher, *kill]
    return subprocess.Popen(
        [*map(str, typed)], env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True, stderr=subprocess.PIPE
    )


def finish(process):
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said.decode()
    return said.decode()


def files(run):
    """The bytes of everything but times, and the pages that show them."""
    passed = ("timing.json", "report.html")
    return {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name not in passed}


def differing(run, other):
    """Names of files that two runs do not have alike: a message with all their bytes could not be read."""
    return sorted(name for name in run.keys() | other.keys() if run.get(name) != other.get(name))


@pytest.fixture(scope="module")
def alone(inputs, tmp_path_factory):
    """What one process makes of a command, once."""
    made = {}

    def of(command):
        if command not in made:
            run = tmp_path_factory.mktemp("alone") / command
            finish(start(command, inputs, run, 1))
            made[command] = files(run)
            assert sum(name.startswith("shards/") for name in made[command]) >= 3 or command == "generate"
        return made[command]

    return of


@pytest.mark.parametrize("command", commands.COMMANDS)
def test_two_processes_give_the_bytes_of_one(command, alone, inputs, tmp_path):
    """Each stage's first shard is a worker's."""
    finish(start(command, inputs, tmp_path / "run", 2))
    assert differing(files(tmp_path / "run"), alone(command)) == []


@pytest.mark.parametrize("command", SHARED)
def test_one_of_four_processes_is_killed(command, alone, inputs, tmp_path):
    said = finish(start(command, inputs, tmp_path / "run", 4, "local", "kill"))
    assert differing(files(tmp_path / "run"), alone(command)) == []
    assert "is lost: killed: the others go on" in said


@pytest.mark.parametrize(("command", "killed"), KILLS)
def test_the_same_command_goes_on_after_a_kill(command, killed, alone, inputs, tmp_path):
    """Generated pictures, which have no run, are made anew, and nothing else is left of them."""
    run = tmp_path / "run"
    first = start(command, inputs, run, 2)
    while not commands.shards(run):
        assert first.poll() is None, first.stderr.read()
        time.sleep(0.01)
    if killed == "all":
        os.killpg(first.pid, signal.SIGKILL)
    else:
        first.kill()
    first.communicate()
    if command != "generate":
        assert json.loads((run / "run.json").read_text())["status"] == "running"
    finish(start(command, inputs, run, 1))
    assert differing(files(run), alone(command)) == []
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("command", [*SHARED, "triggers"])
def test_two_actors_give_the_bytes_of_one(command, alone, inputs, tmp_path):
    """Ray opens sockets: in processes of their own."""
    pytest.importorskip("ray")
    finish(start(command, inputs, tmp_path / "run", 2, "ray"))
    assert differing(files(tmp_path / "run"), alone(command)) == []
