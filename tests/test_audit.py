"""The audit as a whole: what it writes, what it refuses, and that killing it loses nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest
import torch

from unmemorize.audit import AuditSpec, choose, run_audit
from unmemorize.core.errors import UserError
from unmemorize.core.sample import generate
from unmemorize.data.pictures import save_image
from unmemorize.data.source import Prompt
from unmemorize.models.load import load

STEPS = 3


@pytest.fixture(scope="session")
def inputs(tiny_folder, tmp_path_factory):
    """Thirty prompts and a folder of pictures, one of which is what the model makes of the first prompt at seed 0."""
    folder = tmp_path_factory.mktemp("inputs")
    prompts = [f"a red kite number {i}" for i in range(27)] + ["", "x " * 5000, "<b>中文 \u202e\U0001f600</b>"]
    rows = "".join(json.dumps({"prompt": p}) + "\n" for p in prompts)
    (folder / "prompts.jsonl").write_text(rows)
    model = load(str(tiny_folder))
    (made,) = generate(model, model.encode(prompts[:1]), seeds=[0], steps=STEPS)
    save_image(made, folder / "images" / "made.png")
    for i in range(6):
        save_image(torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(i)), folder / "images" / f"{i}.png")
    return folder


def spec(inputs, tiny_folder, **changes):
    values = {
        "prompts": str(inputs / "prompts.jsonl"),
        "images": str(inputs / "images"),
        "seeds": (0, 1),
        "steps": STEPS,
    }
    return AuditSpec(**({"model": str(tiny_folder)} | values | changes))


@pytest.fixture(scope="session")
def finished(inputs, tiny_folder, tmp_path_factory):
    """A finished run and its summary."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    return run, run_audit(spec(inputs, tiny_folder), run)


def reproducible(run):
    """Every file of a run that its inputs determine, as bytes."""
    names = ("timing.json", "report.html")
    return {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name not in names}


def test_a_reproduced_training_picture_is_found(finished):
    """The picture the model makes is called a verbatim copy, with its prompt, seed and training picture."""
    run, summary = finished
    rows = pq.read_table(run / "scores" / "verify.parquet").to_pylist()
    found = next(r for r in rows if r["id"] == "00000" and r["seed"] == 0)
    assert (found["verdict"], summary["verdict"]) == ("verbatim", "issue")
    assert found["distance"] < 0.01
    assert (run / found["nearest"]).exists()
    assert (run / "report.html").stat().st_size > 1000


def test_counts_agree_with_the_files(finished):
    """The summary's counts are those of the tables."""
    run, summary = finished
    rows = pq.read_table(run / "scores" / "verify.parquet").to_pylist()
    assert summary["prompts"] == pq.read_table(run / "scores" / "prompts.parquet").num_rows == 30
    assert summary["images"] == len(rows) == len(list((run / "images").iterdir())) == 60
    assert summary["copied_images"] == sum(r["verdict"] != "none" for r in rows)


def test_evaluations_are_those_of_the_denoiser(inputs, tiny_folder, tmp_path, monkeypatch):
    """The reported cost is what a hook on the UNet counts, row by row."""
    calls = []

    def counted(name):
        model = load(name)
        model.denoiser.register_forward_hook(lambda _m, args, _o: calls.append(len(args[0])))
        return model

    monkeypatch.setattr("unmemorize.audit.load", counted)
    summary = run_audit(spec(inputs, tiny_folder), tmp_path / "run")
    assert sum(summary["evaluations"].values()) == sum(calls) == 2 * 31 + 60 * 2 * STEPS


def test_killed_in_the_middle_it_ends_with_the_same_bytes(inputs, tiny_folder, finished, tmp_path):
    """kill -9 after the first generated shard, run again: every reproducible file is the uninterrupted run's."""
    run = tmp_path / "killed"
    command = [sys.executable, "-m", "unmemorize", "audit", str(tiny_folder), "--run", str(run), "--seeds", "2"]
    command += ["--prompts", str(inputs / "prompts.jsonl"), "--images", str(inputs / "images"), "--steps", str(STEPS)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    while not (run / "shards" / "generate" / "00000.parquet").exists():
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert json.loads((run / "run.json").read_text())["status"] == "running"
    run_audit(spec(inputs, tiny_folder), run)
    assert reproducible(run) == reproducible(finished[0])


def test_a_finished_run_is_not_done_again(inputs, tiny_folder, finished):
    """The same command on a finished run leaves its shards alone and gives the same summary."""
    run, summary = finished
    before = {p: p.stat().st_mtime_ns for p in (run / "shards").rglob("*.parquet")}
    assert run_audit(spec(inputs, tiny_folder), run) == summary
    assert {p: p.stat().st_mtime_ns for p in (run / "shards").rglob("*.parquet")} == before


def test_a_run_with_other_settings_is_refused(inputs, tiny_folder, finished):
    """Scores of two settings never meet in one directory."""
    run, _ = finished
    before = reproducible(run)
    with pytest.raises(UserError, match="other settings"):
        run_audit(spec(inputs, tiny_folder, guidance=2.0), run)
    assert reproducible(run) == before


def test_a_directory_with_other_files_is_refused(inputs, tiny_folder, tmp_path):
    """Nothing is written beside files that are not a run's."""
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="something else"):
        run_audit(spec(inputs, tiny_folder), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_without_training_pictures_nothing_is_called_clean(inputs, tiny_folder, tmp_path):
    """Scores alone give the verdict untested, and the report says why."""
    summary = run_audit(spec(inputs, tiny_folder, images="", generate=2), tmp_path / "run")
    assert summary["verdict"] == "untested"
    assert summary["detector"] is None
    assert {"name": "verify", "state": "not run"}.items() <= summary["states"][0].items()


def test_prompts_are_generated_by_ladder_score_and_spread():
    """The ladder first, then the best-scored half of what is left, then an even spread down to the lowest score."""
    ladder = [Prompt(f"v{i}", "v", "verbatim", 1) for i in range(3)]
    others = [Prompt(f"o{i}", "o") for i in range(9)]
    scores = torch.arange(12.0, 0.0, -1)[:, None].numpy()
    chosen = [p.id for p in choose(ladder + others, scores, 9)]
    assert chosen == ["v0", "v1", "v2", "o0", "o1", "o2", "o3", "o5", "o8"]
    assert [p.id for p in choose(ladder + others, scores, 2)] == ["v0", "v2"]
    assert len(choose(ladder + others, scores, 100)) == 12
