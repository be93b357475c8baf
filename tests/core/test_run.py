"""Run directories: whole files, true records."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmemorize.core.errors import UserError
from unmemorize.core.run import (
    Run,
    RunRecord,
    Source,
    atomic,
    check_settings,
    digest,
    load_record,
    scratch,
    versions,
    write_json,
)


def make_record(**changes):
    values = {
        "status": "running",
        "spec": {"model": "testbed", "seeds": [0, 1], "guidance": 7.5, "column": "", "steps": 20, "sscd": None},
        "versions": versions(),
        "model": {"name": "testbed", "fingerprint": "00"},
        "data": {"prompts": Source(source="日本.txt", sha256="ab", count=3)},
        "criterion": {
            "name": "l2-ratio",
            "threshold": 0.5,
            "recipe": "any",
            "weights": None,
            "higher_is_closer": False,
        },
    }
    return RunRecord(**values | changes)


def test_atomic_writes_a_whole_file_under_its_name(tmp_path):
    """The file has its name only once the block is over; its folder is made."""
    path = tmp_path / "deep" / "file.txt"
    with atomic(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_keeps_the_old_file_and_leaves_no_other(tmp_path, error):
    """Whatever ends the block, the old contents stay and nothing partial is left."""
    path = tmp_path / "file.txt"
    path.write_text("old")

    def block():
        with atomic(path) as temporary:
            temporary.write_text("ne")
            raise error

    with pytest.raises(error):
        block()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_before_writing_is_that_error(tmp_path):
    """A block that fails before it writes reports its own failure and leaves nothing."""
    with pytest.raises(RuntimeError, match="early"), atomic(tmp_path / "file.txt"):
        raise RuntimeError("early")
    assert list(tmp_path.iterdir()) == []


def test_opening_a_run_leaves_the_files_that_live_processes_write(tmp_path):
    """A second process opens the run while the first writes: the first one's file comes to its name."""
    make_record().save(tmp_path)
    opened = f"""
from pathlib import Path
from unmemorize.core.run import Run, load_record
with Run.open(Path({str(tmp_path)!r}), load_record(Path({str(tmp_path)!r}))):
    pass
"""
    with atomic(tmp_path / "shards" / "0.parquet") as temporary:
        temporary.write_text("whole")
        subprocess.run([sys.executable, "-c", opened], check=True)
    assert (tmp_path / "shards" / "0.parquet").read_text() == "whole"


def test_opening_a_run_deletes_what_a_dead_process_of_this_host_left(tmp_path):
    """Its temporaries go; those of the same process number on another host, and names of other make, stay."""
    make_record().save(tmp_path)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = socket.gethostname().replace(".", "-")
    left = tmp_path / f".0.parquet.{host}.{dead.pid}.0123abcd.tmp"
    others = [tmp_path / f".0.parquet.elsewhere-{host}.{dead.pid}.0123abcd.tmp", tmp_path / ".mine.tmp"]
    for path in (left, *others):
        path.write_text("part")
    with Run.open(tmp_path, make_record()):
        assert not left.exists()
    assert all(path.exists() for path in others)


def test_a_run_that_another_process_begins_is_not_something_else(tmp_path):
    """The other's record is being written: there is a temporary file and no record yet."""
    with atomic(tmp_path / "run.json") as temporary:
        temporary.write_text(make_record().model_dump_json())
        with Run.open(tmp_path, make_record()):
            assert load_record(tmp_path) == make_record()


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Its bytes are synchronised, then it is renamed."""
    done = []
    sync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda number: (done.append("sync"), sync(number)))
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("rename"), rename(*names)))
    with atomic(tmp_path / "file.txt") as temporary:
        temporary.write_text("new")
    assert done == ["sync", "rename"]


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "the disk is full: make room and start the same command again"),
        (errno.EDQUOT, "the quota is used up: make room"),
        (errno.EROFS, "read-only: name a place that can be written"),
    ],
)
def test_what_cannot_be_written_says_what_to_do(number, says, tmp_path):
    """One line names the file and the remedy, and nothing is left of it."""

    def write():
        with atomic(tmp_path / "file.txt") as temporary:
            temporary.write_text("ha")
            raise OSError(number, os.strerror(number))

    with pytest.raises(UserError, match=rf"file\.txt: .*{says}"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_a_finished_run_is_opened_where_nothing_can_be_written(tmp_path, monkeypatch):
    """It is kept as it is; one that is not finished cannot go on there."""
    make_record(status="finished").save(tmp_path / "finished")
    make_record().save(tmp_path / "running")
    monkeypatch.setattr(os, "access", lambda path, mode: False)

    def read_only(path, *_, **named):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "write_text", read_only)
    with Run.open(tmp_path / "finished", make_record()) as run:
        assert run.is_kept
    with pytest.raises(UserError, match="read-only"), Run.open(tmp_path / "running", make_record()):
        pass
    other = make_record(spec={})
    with pytest.raises(UserError, match="holds a run with other"), Run.open(tmp_path / "finished", other):
        pass


def test_a_record_survives_the_disk(tmp_path):
    """What was saved is what is loaded, to equality: a continued run compares them."""
    record = make_record()
    record.save(tmp_path)
    assert load_record(tmp_path) == record
    assert load_record(tmp_path) != make_record(status="finished")
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_the_same_record_is_the_same_bytes(tmp_path):
    """Two saves of one record are equal files."""
    for name in "ab":
        make_record().save(tmp_path / name)
    assert (tmp_path / "a" / "run.json").read_bytes() == (tmp_path / "b" / "run.json").read_bytes()


def test_where_there_is_no_run_there_is_no_record(tmp_path):
    """An empty or missing directory is None, not an error."""
    assert load_record(tmp_path) is None
    assert load_record(tmp_path / "nowhere") is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"status": "running"}', b"\xff\xfe\x00", b'"text"'])
def test_a_foreign_or_broken_record_is_the_users_to_mend(tmp_path, content):
    """A `run.json` that is not ours is one line that names it and says what to do."""
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(UserError, match=r"run\.json: not a run record: name another directory") as error:
        load_record(tmp_path)
    assert "\n" not in str(error.value)


@given(st.lists(st.binary(max_size=6), max_size=4), st.lists(st.binary(max_size=6), max_size=4))
def test_digests_differ_unless_every_chunk_is_equal(first, second):
    """Moving bytes from one chunk to the next changes the digest."""
    assert (digest(first) == digest(second)) == (first == second)


def test_versions_name_what_decides_the_numbers():
    """Python, torch, diffusers, transformers and numpy are recorded."""
    assert {"python", "torch", "diffusers", "transformers", "numpy", "unmemorize"} <= versions().keys()


def test_a_run_is_finished_where_its_block_succeeds(tmp_path):
    """It runs in the block, and stays running where that fails."""
    with pytest.raises(RuntimeError), Run.open(tmp_path / "run", make_record()):
        raise RuntimeError
    assert load_record(tmp_path / "run").status == "running"
    with Run.open(tmp_path / "run", make_record()) as run:
        assert load_record(run.folder).status == "running"
    assert load_record(tmp_path / "run").status == "finished"


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[" * 100_000, b"null", b'{"seconds": {"a": "b"}}', b'{"seconds": []}']
)
def test_damaged_seconds_stop_nothing(tmp_path, content):
    """They decide nothing: they are counted anew."""
    with Run.open(tmp_path / "run", make_record()) as run:
        (run.folder / "timing.json").write_bytes(content)
        with run.timed("a"):
            pass
    assert json.loads((tmp_path / "run" / "timing.json").read_text())["seconds"].keys() == {"a"}


def test_seconds_add_up(tmp_path):
    """What a stage took before it was killed counts, too; the start is the first one's."""
    with Run.open(tmp_path / "run", make_record()) as run:
        with pytest.raises(RuntimeError), run.timed("detect"):
            raise RuntimeError
        first = json.loads((run.folder / "timing.json").read_text())
        first["seconds"]["detect"] = 5.0
        write_json(run.folder / "timing.json", first)
        with run.timed("detect"), run.timed("inner"):
            pass
    timing = json.loads((tmp_path / "run" / "timing.json").read_text())
    assert timing["started"] == first["started"]
    assert timing["seconds"]["detect"] >= 5.0
    assert timing["seconds"].keys() == {"detect", "inner"}


SPEC = make_record().spec


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"spec": SPEC | {"steps": 50}}, "steps: 20 there, 50 here:"),
        ({"spec": SPEC | {"seeds": [0]}}, r"seeds: \[0, 1\] there, \[0\] here:"),
        ({"spec": SPEC | {"new": "x"}}, "new: nothing there, x here:"),
        ({"versions": versions() | {"torch": "1.0"}}, r"torch: \S+ there, 1\.0 here:"),
        ({"model": {"name": "testbed", "fingerprint": "11"}}, "weights of the model: 00 there, 11 here:"),
        (
            {"data": {"prompts": Source(source="日本.txt", sha256="cd", count=3)}},
            "content of prompts: ab there, cd here:",
        ),
        ({"spec": SPEC | dict.fromkeys("abcde", 1)}, "a: nothing there, 1 here; .* and 2 more:"),
    ],
)
def test_a_refused_run_says_which_setting_differs(tmp_path, changes, says):
    """One line names it, with both values."""
    make_record().save(tmp_path)
    with pytest.raises(UserError, match=says) as refused, Run.open(tmp_path, make_record(**changes)):
        pass
    assert len(str(refused.value).splitlines()) == 1
    assert load_record(tmp_path) == make_record()


def test_a_run_goes_on_where_its_inputs_were_moved(tmp_path):
    """A file is known by what it holds; the record stays that of the start, so that the bytes do."""
    make_record(spec=SPEC | {"prompts": "here/p.txt"}).save(tmp_path)
    before = (tmp_path / "run.json").read_bytes()
    moved = Source(source="there/p.txt", sha256="ab", count=3)
    record = make_record(spec=SPEC | {"prompts": "there/p.txt"}, data={"prompts": moved})
    assert record.digest == load_record(tmp_path).digest
    with Run.open(tmp_path, record):
        assert (tmp_path / "run.json").read_bytes() == before


def test_a_temporary_folder_is_gone_at_the_end(tmp_path):
    """Two have two; what a killed process left of one goes when the run is opened."""
    with scratch(tmp_path) as first, scratch(tmp_path) as second:
        assert first != second
        assert first.is_dir()
        assert second.is_dir()
    assert not list(tmp_path.iterdir())
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = socket.gethostname().replace(".", "-")
    left = tmp_path / f".scratch.{host}.{dead.pid}.0123abcd.tmp"
    left.mkdir()
    (left / "file").write_text("x")
    with Run.open(tmp_path, make_record()):
        assert not left.exists()


def test_what_the_model_decides_is_no_other_setting(tmp_path):
    """Steps, guidance and precision are recorded as they were used, and may be left to the model again."""
    record = RunRecord(
        status="finished", spec={"steps": 50, "guidance": 7, "dtype": "float32"}, versions={}, model={}, data={}
    )
    record.save(tmp_path)
    check_settings(tmp_path, {"steps": 0, "guidance": None, "dtype": ""})
    with pytest.raises(UserError, match="dtype: float32 there, bfloat16 here"):
        check_settings(tmp_path, {"steps": 0, "guidance": None, "dtype": "bfloat16"})
