"""Methods of another package's file, in every command, in the audit and in its report."""

from __future__ import annotations

import json

import external  # noqa: F401  (registers one method of each kind)
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from unmemorize.core.sample import Sampler, generate
from unmemorize.data.pictures import save_image
from unmemorize.models.load import load

MEMORIES = ("an owl on a fence", "the old harbour")


@pytest.fixture(scope="module")
def inputs(tiny_folder, tmp_path_factory):
    """Prompts, what the tiny model makes of two of them at seed 0 (so that it copies them), and other pictures."""
    root = tmp_path_factory.mktemp("inputs")
    model = load(str(tiny_folder))
    made = generate(model, model.encode(MEMORIES), seeds=[0, 0], sampler=Sampler(2))
    rng = np.random.default_rng(0)
    for k, caption in enumerate(MEMORIES):
        save_image(made[k], root / "targets" / f"{k}.png")
        (root / "targets" / f"{k}.txt").write_text(caption)
        save_image(made[k], root / "all" / f"{k}.png")
        (root / "all" / f"{k}.txt").write_text(caption)
    for k in range(8):
        for name in ("controls", "all"):
            (root / name).mkdir(exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(root / name / f"c{k}.png")
            (root / name / f"c{k}.txt").write_text(f"word{k} other{k} thing{k}")
    (root / "prompts.txt").write_text("\n".join([*MEMORIES, "two red kites"]))
    (root / "ordinary.txt").write_text("".join(f"a plain boat number {i}\n" for i in range(30)))
    return root


def test_in_every_command(call, inputs, tiny_folder, tmp_path, monkeypatch):
    """Named like our own, with settings; what they give is what is printed."""
    monkeypatch.chdir(tmp_path)
    prompts = ("--prompts", inputs / "prompts.txt")
    code, out, err = call("detect", tiny_folder, *prompts, "--method", "letters:weight=2", "--json")
    assert code == 0, err
    assert max(row["score"] for row in json.loads(out)["prompts"]) == 2 * len(MEMORIES[0])
    code, out, err = call("explain", tiny_folder, MEMORIES[1], "--method", "first-word", "--json")
    assert code == 0, err
    assert [word["significance"] for word in json.loads(out)["words"]] == [1, 0, 0]
    code, out, err = call("locate", tiny_folder, *prompts, "--method", "first-layer", "--json")
    assert code == 0, err
    assert json.loads(out)["selected"] > 0
    pictures = ("--targets", inputs / "targets", "--controls", inputs / "controls", "--pictures", 1, "--steps", 2)
    code, out, err = call("attack", tiny_folder, *pictures, "--method", "stay", "--mitigation", "first-layer", "--json")
    assert code == 0, err
    assert json.loads(out)["evaluations"] == 0
    code, out, err = call(
        "mitigate", tiny_folder, *pictures, "--method", "shrink", "--attack-updates", 1, "--out", "cured", "--json"
    )
    assert code == 0, err
    assert "shrink" in (tmp_path / "cured" / "README.md").read_text()
    code, out, err = call("generate", tiny_folder, "two red kites", "--mitigation", "no-guidance", "--pictures", 1)
    assert code == 0, err
    code, out, err = call("methods", "--json")
    assert {"letters", "first-word", "first-layer", "shrink", "no-guidance", "stay", "brightness"} <= {
        facts["name"] for facts in json.loads(out)["methods"]
    }


def test_in_the_audit_and_its_report(call, inputs, tiny_folder, tmp_path):
    """Scores, words, mitigations and attacks are theirs, in the tables and on the page."""
    run = tmp_path / "run"
    code, _, err = call(
        *("audit", tiny_folder, "--prompts", inputs / "prompts.txt", "--references", inputs / "all"),
        *("--ordinary", inputs / "ordinary.txt", "--seeds", 2, "--pictures", 1, "--steps", 2, "--run", run),
        *("--method", "letters", "--explainer", "first-word", "--attack-method", "stay", "--attack-updates", 1),
        *("--mitigation", "no-guidance", "--mitigation", "first-layer"),
    )
    assert code == 0, err
    scores = pq.read_table(run / "scores" / "detect.parquet").to_pylist()
    assert {row["method"] for row in scores} == {"letters"}
    assert scores[0]["score"] == len(MEMORIES[0])
    words = pq.read_table(run / "scores" / "explain.parquet").to_pylist()
    assert all(row["significance"][0] == 1 for row in words)
    rows = pq.read_table(run / "scores" / "mitigations.parquet").to_pylist()
    assert [row["name"] for row in rows] == ["none", "no-guidance", "first-layer"]
    assert [row["attack_knows_it"] for row in rows] == [True, False, True]
    page = (run / "report.html").read_text()
    for name in ("no-guidance", "first-layer"):
        assert name in page
