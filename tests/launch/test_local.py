"""Processes of one command: the bytes of one alone, whoever of them is killed, and when."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import squares
from squares import Squares, work

from unmemorize.core.errors import UserError
from unmemorize.launch import launched


@pytest.fixture(autouse=True)
def _without_torch(monkeypatch):
    """As in the workers: a shard says which torch it was made with, where that is loaded."""
    monkeypatch.delitem(sys.modules, "torch", raising=False)


@pytest.fixture
def alone(tmp_path):
    """What one process makes."""
    serial = Squares(tmp_path / "alone", seconds=0)
    work(serial, 1)
    return serial.files()


@pytest.mark.parametrize("count", [2, 4])
def test_workers_give_the_bytes_of_one(count, alone, tmp_path):
    """Each does a part, and no shard is done twice."""
    shared = Squares(tmp_path / "run")
    work(shared, count)
    assert shared.files() == alone
    assert len(shared.processes()) == count
    numbers = [line.split()[1] for line in (shared.run / "done.txt").read_text().splitlines()]
    assert len(numbers) == len(set(numbers)) == 30


def test_a_worker_that_is_killed_is_a_line(alone, tmp_path, caplog):
    """Its shard is done by the others."""
    shared = Squares(tmp_path / "run", seconds=0.05)
    work(shared, 2, do=lambda: [os.kill(pid, signal.SIGKILL) for pid in shared.processes()])
    assert shared.files() == alone
    assert [r.getMessage() for r in caplog.records] == ["worker 2 of 2 is lost: killed: the others go on"]


def test_a_worker_that_fails_is_a_line(alone, tmp_path, caplog):
    """It says why, on one line."""
    shared = Squares(tmp_path / "run", fails_in=os.getpid())
    lost = lambda: bool(caplog.records)  # noqa: E731
    with launched("local", 2) as call:
        shared.run.mkdir()
        call(shared)
        shared.share(lambda: not lost())
    assert [r.getMessage() for r in caplog.records] == [r"worker 2 of 2 is lost: no more\nsquares: the others go on"]


@pytest.mark.parametrize("killed", ["the first process", "all"])
def test_a_command_that_is_killed_goes_on(killed, alone, tmp_path):
    """Nothing of it is left running, and the same command ends with the same bytes."""
    shared = Squares(tmp_path / "run")
    command = [sys.executable, squares.__file__, str(shared.run), "3"]
    first = subprocess.Popen(command, start_new_session=True)
    while len(shared.processes()) < 2:
        time.sleep(0.01)
    others = shared.processes()
    if killed == "all":
        os.killpg(first.pid, signal.SIGKILL)
    else:
        first.kill()
    first.wait()
    deadline = time.monotonic() + 30
    while any(map(_is_running, others)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(_is_running, others))
    assert len(list(shared.run.glob("shards/squares/*.parquet"))) < 30
    work(shared, 1)
    assert shared.files() == alone


def _is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("launcher", ["slurm", "ray:adress=x", "Local"])
def test_a_launcher_that_there_is_not_is_one_line(launcher):
    with pytest.raises(UserError, match=f"--launcher {launcher}: no such launcher: name local, ray, or"):
        launched(launcher, 2)
