"""Ray actors: the bytes of one process, also where one of them is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import squares
from squares import Squares

from hostile import complaints


@pytest.mark.enable_socket
def test_an_address_where_nothing_answers_is_one_line(call, tmp_path, monkeypatch):
    """So is Ray that is not installed."""
    (tmp_path / "prompts.txt").write_text("an owl\n")
    monkeypatch.chdir(tmp_path)
    given = ["testbed", "--prompts", "prompts.txt", "--run", "run", "--launcher", "ray:address=127.0.0.1:1"]
    code, out, err = call("detect", *given)
    assert (code, out) == (2, "")
    (line,) = complaints(err)
    assert "answers at 127.0.0.1:1" in line or 'pip install "unmemorize[ray]"' in line


@pytest.mark.parametrize("killed", [False, True])
def test_actors_give_the_bytes_of_one(killed, tmp_path):
    """Ray starts one anew that is killed. In a process of its own, since Ray opens sockets."""
    pytest.importorskip("ray")
    alone, shared = Squares(tmp_path / "alone"), Squares(tmp_path / "run")
    subprocess.run([sys.executable, squares.__file__, str(alone.run), "1"], check=True)
    running = subprocess.Popen([sys.executable, squares.__file__, str(shared.run), "2", "ray"])
    while killed and not shared.processes():
        time.sleep(0.01)
    if killed:
        os.kill(min(shared.processes()), signal.SIGKILL)
    assert running.wait(timeout=250) == 0
    assert shared.files() == alone.files()
