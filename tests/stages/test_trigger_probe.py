"""The prompt probe as a command: outcomes, resumption, mistakes."""

from __future__ import annotations

import json
import sys

import pyarrow.parquet as pq
import pytest
from PIL import Image

from hostile import complaints
from unmemorize import cli
from unmemorize.core.specs import TriggerSpec
from unmemorize.stages.triggers import probe


@pytest.fixture
def inputs(tmp_path):
    """Two prompts and one picture."""
    (tmp_path / "prompts.txt").write_text("a green bicycle\nan owl\n")
    (tmp_path / "marks.txt").write_text("???\n!\n")
    (tmp_path / "images").mkdir()
    Image.new("RGB", (32, 32), "red").save(tmp_path / "images" / "red.png")
    return tmp_path


def spec(inputs, tiny_folder, **more):
    given = {"prompts": str(inputs / "prompts.txt"), "references": str(inputs / "images"), "steps": 1, "repeats": 2}
    return TriggerSpec(model=str(tiny_folder), pictures=1, **(given | more))


def test_every_text_is_measured_once(inputs, tiny_folder):
    """A random model copies nothing; tables and counts agree."""
    result = probe(spec(inputs, tiny_folder), inputs / "run")
    variants = pq.read_table(inputs / "run" / "variants.parquet").to_pylist()
    outcomes = pq.read_table(inputs / "run" / "outcomes.parquet").to_pylist()
    assert result["triggers"] == []
    assert result["criterion_errors"] == ""  # pixel distance below 256 px has no measured error rate
    assert {w["word"] for w in result["words"]} == {"a", "green", "bicycle", "an", "owl"}
    assert len(outcomes) == len({v["text"] for v in variants}) == result["texts"]
    assert {v["kind"] for v in variants} == {"full", "word", "bigram", "without", "moved", "repeated", "random"}
    assert json.loads((inputs / "run" / "triggers.json").read_text())["words"] == result["words"]


@pytest.mark.parametrize("model", ["testbed", "testbed-words"])
def test_a_shipped_model_is_asked_its_prompts_of_words(call, model):
    """Those of the panel's words, and those of the words' model."""
    code, out, err = call("triggers", model, "--limit", 0, "--dry-run", "--json")
    assert code == 0, err
    assert json.loads(out)["items"] > 0


def test_a_killed_probe_continues_to_the_same_result(inputs, tiny_folder):
    """Shards that are there are not measured again."""
    whole = probe(spec(inputs, tiny_folder, limit=1), inputs / "whole")

    def stop(stage, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        probe(spec(inputs, tiny_folder, limit=1), inputs / "killed", stop)
    again = probe(spec(inputs, tiny_folder, limit=1), inputs / "killed")
    assert again == whole  # evaluations, too: those of both
    assert (again["prompts"], again["prompts_given"]) == (1, 2)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"--references": ""}, "--references"),
        ({"--prompts": ""}, "--prompts"),
        ({"--prompts": "none.txt"}, "no such file"),
        ({"--references": "none"}, "no such file or folder"),
        ({"--prompts": "marks.txt"}, "no prompt with a word in it"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(changes, says, inputs, tiny_folder, monkeypatch, capsys):
    """What, where and what to do; no run directory."""
    monkeypatch.chdir(inputs)
    options = {"--prompts": "prompts.txt", "--references": "images", "--run": "run"} | changes
    arguments = [x for name, value in options.items() if value for x in (name, value)]
    monkeypatch.setattr(sys, "argv", ["unmemorize", "triggers", str(tiny_folder), *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    printed = capsys.readouterr()
    assert (stop.value.code, printed.out) == (2, "")
    assert len(complaints(printed.err)) == 1
    assert says in printed.err
    assert not (inputs / "run").exists()
