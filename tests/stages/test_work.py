"""The work of a stage as settings alone: opened in another process, or done in parts, it is the same work."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil

import pyarrow.parquet as pq
import pytest

from hostile import complaints
from unmemorize.core.crew import Part
from unmemorize.core.errors import Unfinished
from unmemorize.core.run import quiet
from unmemorize.core.specs import DetectSpec
from unmemorize.stages.detect import detect, scoring
from unmemorize.stages.stage import Task

PROMPTS = 40  # two shards


@pytest.fixture
def spec(tiny_folder, tmp_path):
    """Forty prompts for the random pipeline."""
    (tmp_path / "prompts.txt").write_text("".join(f"prompt {i}\n" for i in range(PROMPTS)))
    return DetectSpec(model=str(tiny_folder), prompts=str(tmp_path / "prompts.txt"), seeds=2, steps=2, device="cpu")


def second_half(task):
    """What a worker does: open the task, do its part, leave the rest to others."""
    with pytest.raises(Unfinished, match="1 of 2 shards are missing"):
        task.open("cpu").run(task.run, quiet, Part(1, 2))


def test_a_task_opened_in_another_process_gives_the_serial_shard(spec, tmp_path):
    """The same bytes, from settings that were pickled, in a process that shares nothing with this one.

    It takes its prompts from the run: their file is gone.
    """
    detect(spec, tmp_path / "serial", quiet)
    (tmp_path / "parted" / "scores").mkdir(parents=True)
    for name in ("run.json", "scores/prompts.parquet"):
        shutil.copyfile(tmp_path / "serial" / name, tmp_path / "parted" / name)
    (tmp_path / "prompts.txt").unlink()
    worker = multiprocessing.get_context("spawn").Process(
        target=second_half, args=(Task(spec, tmp_path / "parted", scoring),)
    )
    worker.start()
    worker.join(300)
    assert worker.exitcode == 0
    serial, parted = (sorted((tmp_path / run).glob("shards/detect/*.parquet")) for run in ("serial", "parted"))
    assert [path.name for path in parted] == ["000000001.parquet"]
    assert parted[0].read_bytes() == serial[1].read_bytes()


def test_parts_make_the_run(spec, call, tmp_path):
    """The first ends with what is missing, and no mistake; the second joins all rows: the bytes of a run in one go."""
    given = [spec.model, "--prompts", spec.prompts, "--seeds", 2, "--steps", 2, "--device", "cpu", "--json"]
    assert call("detect", *given, "--run", tmp_path / "whole")[0] == 0
    code, out, err = call("detect", *given, "--run", tmp_path / "parts", "--part", "0/2")
    assert (code, out) == (0, "")
    assert "part 0/2 of detect is done; of other parts 1 of 2 shards are missing" in err
    assert json.loads((tmp_path / "parts" / "run.json").read_text())["status"] == "running"
    code, out, _ = call("detect", *given, "--run", tmp_path / "parts", "--part", "1/2")
    assert code == 0
    assert len(json.loads(out)["prompts"]) == PROMPTS
    table = "scores/detect.parquet"
    assert (tmp_path / "parts" / table).read_bytes() == (tmp_path / "whole" / table).read_bytes()
    assert pq.read_metadata(tmp_path / "parts" / table).num_rows == 2 * PROMPTS


@pytest.mark.parametrize("command", ["detect", "attack", "triggers", "data"])
def test_a_part_that_there_is_not_is_refused(command, call, tmp_path):
    """Before anything is loaded."""
    source = [tmp_path] if command == "data" else []
    code, out, err = call(command, *source, "--run", tmp_path / "run", "--part", "2/2")
    assert (code, out) == (2, "")
    assert complaints(err) == ["error: part 2/2: parts are counted from 0: name one from 0/2"]


def test_parts_need_a_place_to_meet(call):
    """detect without a run directory keeps nothing."""
    code, _, err = call("detect", "--part", "0/2")
    assert code == 2
    assert "--run" in err


def test_a_finished_run_is_read_where_nothing_can_be_written(spec, call, tmp_path, monkeypatch):
    """On a mount that is read-only: the same answer, and no file is touched."""
    given = [spec.model, "--prompts", spec.prompts, "--seeds", 2, "--steps", 2, "--device", "cpu", "--json"]
    code, first, _ = call("detect", *given, "--run", tmp_path / "run")
    assert code == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    code, again, _ = call("detect", *given, "--run", tmp_path / "run")
    assert (code, again) == (0, first)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before
