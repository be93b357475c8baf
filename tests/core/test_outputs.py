"""Where commands write: a new name or a regular file, apart from what is read, checked before any work."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from hostile import is_pipe, named_pipe
from made_up_run import make_run
from unmemorize.core.errors import UserError
from unmemorize.core.outputs import Output, check_outputs
from unmemorize.core.run import atomic, new_folder


def refused(says, *outputs, inputs=()):
    with pytest.raises(UserError, match=says) as error:
        check_outputs(outputs, inputs)
    assert len(str(error.value).splitlines()) == 1


def file(path):
    return Output("--junit", Path(path), "file")


def new(path):
    return Output("--out", Path(path), "new")


def run(path):
    return Output("--run", Path(path), "run")


def test_a_named_pipe_stays_what_it_is(tmp_path):
    """Neither a pipe nor a link to one is an output, and nothing is renamed over it."""
    pipe = named_pipe(tmp_path / "pipe")
    link = tmp_path / "link"
    link.symlink_to(pipe)
    for path in (pipe, link):
        refused("a named pipe", file(path))
        refused("a named pipe", new(path))
        with pytest.raises(UserError, match="a named pipe"), atomic(path) as temporary:
            temporary.write_text("x")
    assert is_pipe(pipe)
    assert link.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe"]


def test_a_device_stays_what_it_is(tmp_path):
    """A node of our own with the numbers of /dev/null is refused and still a device afterwards."""
    node = tmp_path / "null"
    try:
        os.mknod(node, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except OSError:
        pytest.skip("this user may make no devices")
    refused("a device", file(node))
    with pytest.raises(UserError, match="a device"), atomic(node) as temporary:
        temporary.write_text("x")
    assert stat.S_ISCHR(node.lstat().st_mode)


def test_a_file_is_a_new_name_or_a_regular_file(tmp_path):
    """In a folder that exists; a run directory of the same command counts as one that does."""
    (tmp_path / "old.xml").write_text("x")
    check_outputs([file(tmp_path / "old.xml"), file(tmp_path / "new.xml")])
    check_outputs([run(tmp_path / "run"), file(tmp_path / "run" / "new.xml")])
    refused("a folder, not a file", file(tmp_path))
    refused("no folder", file(tmp_path / "none" / "new.xml"))
    refused("no file can have this name", run("a\0b"))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("place", ["/proc/x", "/sys/x/y", "/dev/x", "/dev/../proc/x"])
def test_system_folders_are_no_place(place):
    """Refused by name, and nothing is tried there."""
    refused("a system folder", file(place))
    refused("a system folder", run(place))


def test_an_open_file_is_no_place(tmp_path):
    """By the name that the system has for it, which leads to the file itself."""
    with (tmp_path / "open.xml").open("w") as opened:
        refused("a system folder", file(f"/proc/self/fd/{opened.fileno()}"))


def test_a_dash_prints(call, tmp_path):
    """As an option's value it is one, not an option."""
    made = make_run(tmp_path / "run", prompts=2, size=8)
    code, out, err = call("compare", made, made, "--out", "-")
    assert (code, err) == (0, "")
    assert out.startswith("<!DOCTYPE html>")
    assert out.rstrip().endswith("</html>")


def test_folders_are_new_or_hold_a_run(tmp_path, monkeypatch):
    """A new folder is empty or not there, and not the working folder; a run directory may hold its run."""
    monkeypatch.chdir(tmp_path)
    refused("the working folder", new("."))
    check_outputs([new("pictures"), run("run")])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    check_outputs([run("run")])
    refused("not empty", new("run"))
    refused("not empty", new("."))
    refused("holds something else", run("."))
    refused("a file, not a folder", run("run/run.json"))


def test_nothing_that_is_read_is_written(tmp_path, monkeypatch):
    """An output is no input and lies in none, whatever links and dots its name has."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "prompts.txt").write_text("a")
    (tmp_path / "link").symlink_to("images")
    inputs = ["images", "prompts.txt", "owner/hub-id", ""]
    for output in (run("images/run"), new("link/new"), file("images/../images/j.xml"), file("prompts.txt")):
        refused("which is read", output, inputs=inputs)
    check_outputs([run("run"), file("j.xml")], inputs)


def test_a_folder_that_is_written_whole_holds_no_other_output(tmp_path):
    """It is renamed into its place at the end, where another output would be in the way."""
    refused("written whole", new(tmp_path / "a"), run(tmp_path / "a" / "run"))
    check_outputs([new(tmp_path / "a"), run(tmp_path / "a.run")])


def test_a_folder_nobody_may_write_to_is_refused(tmp_path, monkeypatch):
    """Before the work, not after it."""
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    refused("cannot be written to", run(tmp_path / "runs" / "x"))


def test_the_working_folder_is_never_replaced(tmp_path, monkeypatch):
    """Python has no name for it that a temporary could stand beside."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="the working folder"), new_folder(Path(".")) as temporary:
        temporary.mkdir()


@pytest.mark.parametrize("place", ["", ".", "/"])
def test_a_file_needs_a_name(place, call):
    """An edit has a file beside it, whose name is made from its own."""
    code, out, err = call("locate", "--out", place)
    assert (code, out) == (2, "")
    assert "a folder, not a file to write" in err


COMMANDS = {
    "audit --run": ["audit", "model", "--prompts", "p.txt", "--run", "BAD"],
    "audit --junit": ["audit", "model", "--prompts", "p.txt", "--junit", "BAD"],
    "attack --run": ["attack", "--run", "BAD"],
    "triggers --run": ["triggers", "--run", "BAD"],
    "locality --run": ["locality", "testbed", "--target", "x.png", "--run", "BAD"],
    "locate --out": ["locate", "--out", "BAD.safetensors"],
    "apply --out": ["apply", "testbed", "e.safetensors", "--out", "BAD"],
    "mitigate --out": ["mitigate", "--out", "BAD"],
    "mitigate --run": ["mitigate", "--out", "new", "--run", "BAD"],
    "generate --out": ["generate", "testbed", "a", "--out", "BAD"],
    "detect --run": ["detect", "--run", "BAD"],
    "compare --out": ["compare", "a", "b", "--out", "BAD"],
    "testbed export": ["testbed", "export", "BAD"],
    "testbed train": ["testbed", "train", "BAD"],
    "testbed train --data": ["testbed", "train", "new", "--data", "BAD"],
}


def test_every_command_checks_its_outputs_before_torch(tmp_path):
    """One line for each output that is a named pipe, which stays one; torch is not imported for it."""
    named_pipe(tmp_path / "BAD")
    (tmp_path / "e.safetensors").write_bytes(b"an edit")
    named_pipe(tmp_path / "BAD.safetensors")
    program = """
import json, sys
from unmemorize import cli
codes = []
for arguments in json.load(sys.stdin):
    sys.argv = ["unmemorize", *arguments]
    try:
        cli.main()
    except SystemExit as stop:
        codes.append(stop.code)
print(json.dumps({"codes": codes, "torch": "torch" in sys.modules}))
"""
    given = json.dumps(list(COMMANDS.values()))
    done = subprocess.run(
        [sys.executable, "-c", program], input=given, capture_output=True, text=True, cwd=tmp_path, timeout=200
    )
    assert json.loads(done.stdout) == {"codes": [2] * len(COMMANDS), "torch": False}
    lines = [line for line in done.stderr.splitlines() if line]
    assert len(lines) == len(COMMANDS)
    assert all(line.startswith("error: BAD") and "a named pipe" in line for line in lines)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["BAD", "BAD.safetensors", "e.safetensors"]
    assert is_pipe(tmp_path / "BAD")
