"""Several detectors in one run: one table, one recording, the fit kept beside it."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest
import torch

from unmemorize.core.methods import Subject, methods, parse
from unmemorize.core.sample import Sampler
from unmemorize.data.ordinary import ordinary_prompts
from unmemorize.models.load import load

PROMPTS = ["an owl on a fence", "the old harbour", "two red kites"]


@pytest.fixture
def given(tiny_folder, tmp_path, monkeypatch):
    """The model, its prompts and few evaluations."""
    monkeypatch.setattr("unmemorize.stages.detect.PLAIN", 4)
    monkeypatch.setattr("unmemorize.stages.detect.ORDINARY", (3, 5))
    (tmp_path / "ordinary.txt").write_text("\n".join(f"a thing {i}" for i in range(9)))
    (tmp_path / "few.txt").write_text("a thing\nanother")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    return (tiny_folder, "--prompts", tmp_path / "prompts.txt", "--seeds", 2, "--steps", 3)


def test_two_detectors_share_a_table_and_a_recording(call, given, tmp_path, tiny_folder):
    """Each scores as it does alone, fitted on plain descriptions; what the first has read costs the second nothing."""
    run = tmp_path / "run"
    asked = ("--method", "max-z", "--method", "noise-gap:last=2")
    code, out, err = call("detect", *given, *asked, "--run", run, "--json")
    assert code == 0, err
    printed = {row["prompt"]: row for row in json.loads(out)["prompts"]}
    rows = pq.read_table(run / "scores" / "detect.parquet").to_pylist()
    assert [(row["method"], row["seed"]) for row in rows[:4]] == [
        (method, seed) for method in ("max-z", "noise-gap:last=2") for seed in (0, 1)
    ]
    assert [row["evaluations"] for row in rows[:4]] == [6, 6, 0, 0]
    model = load(str(tiny_folder))
    subject = Subject(model, Sampler(3))
    first, second = parse("detector", "max-z"), parse("detector", "noise-gap:last=2")
    first = first.fitted(first.score(subject, model.encode(ordinary_prompts(4)), seeds=[0, 1]))
    for detector, name in ((first, "max-z"), (second, "noise-gap:last=2")):
        values = detector.score(subject, model.encode(PROMPTS), seeds=[0, 1]).value
        own = [printed[prompt]["methods"][name]["score"] for prompt in PROMPTS]
        assert torch.allclose(torch.tensor(own), values, rtol=1e-3, atol=1e-3)
    assert all(row["score"] == row["methods"]["max-z"]["score"] for row in printed.values())
    assert [row["evaluations"] for row in printed.values()] == [12] * 3
    assert len(pq.read_table(run / "scores" / "plain.parquet")) == 8
    assert call("detect", *given, *asked, "--run", run, "--json")[1] == out  # continued


def test_detectors_are_fitted_to_the_ordinary_prompts_that_are_named(call, given, tmp_path, tiny_folder):
    """Some of them, evenly spread, instead of plain descriptions: the bar of a cascade is theirs."""
    run, asked = tmp_path / "run", ("--method", "cascade:screen=noise-gap,then=two-probe,share=0.5")
    named = (*given, *asked, "--ordinary", tmp_path / "ordinary.txt")
    code, out, err = call("detect", *named, "--run", run, "--json")
    assert code == 0, err
    assert len(pq.read_table(run / "scores" / "plain.parquet")) == 5 * 2
    subject = Subject(load(str(tiny_folder)), Sampler(3))
    cascade = parse("detector", asked[1])
    encode = subject.model.encode
    fitted = cascade.fitted(cascade.score(subject, encode([f"a thing {i}" for i in (0, 2, 4, 6, 8)]), seeds=[0, 1]))
    values = fitted.score(subject, encode(PROMPTS), seeds=[0, 1]).value
    printed = {row["prompt"]: row["score"] for row in json.loads(out)["prompts"]}
    assert torch.allclose(torch.tensor([printed[prompt] for prompt in PROMPTS]), values, rtol=1e-3, atol=1e-3)
    assert json.loads((run / "run.json").read_text())["data"]["ordinary"]["count"] == 5
    code, out, err = call("detect", *named, "--dry-run", "--json")
    assert code == 0, err
    assert json.loads(out)["evaluations"]["plain"] == 5 * 2 * 3


@pytest.mark.parametrize(
    ("method", "file", "message"),
    [
        ("noise-gap", "ordinary.txt", "--ordinary: noise-gap takes nothing from ordinary prompts: leave it out"),
        ("two-probe", "few.txt", "few.txt: detectors cannot be fitted to 2 ordinary prompts: name 3 or more"),
    ],
)
def test_ordinary_prompts_that_are_too_few_or_for_nothing_are_refused(call, given, tmp_path, method, file, message):
    for more in ((), ("--dry-run",)):
        code, _, err = call("detect", *given, "--method", method, "--ordinary", tmp_path / file, *more)
        assert code == 2
        assert message in err


def test_all_detectors_share_a_table(call, given, tmp_path):
    """A column that several of them keep has one shape, or no table could hold it."""
    names = sorted(methods("detector"))
    asked = [word for name in names for word in ("--method", "dsm:step=0" if name == "dsm" else name)]
    code, _, err = call("detect", *given, *asked, "--run", tmp_path / "run", "--json")
    assert code == 0, err
    table = pq.read_table(tmp_path / "run" / "scores" / "detect.parquet")
    assert len(table) == len(names) * len(PROMPTS) * 2
    assert table["score"].null_count == 0


def test_the_cost_of_each_is_shown(call, given):
    code, out, err = call("detect", *given, "--method", "noise-gap", "--method", "dcs")
    assert code == 0, err
    assert "evaluations: noise-gap 6, dcs 0" in out
    code, out, err = call("detect", *given, "--method", "two-probe", "--method", "noise-gap", "--dry-run", "--json")
    assert code == 0, err
    assert json.loads(out)["evaluations"] == {"plain": 4 * 2 * 3, "detect": 3 * 2 * 3}


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (["noise-gap", "noise-gap"], "named twice"),
        (["noise-gap", "luck"], "no such detector"),
        (["dcs", "noise-gap"], "name --method noise-gap first"),
        (["dcs"], "choose --method noise-gap"),
    ],
)
def test_a_mistake_is_one_line(call, given, methods, message):
    """Also where the norms of the public format are not those of the first method."""
    named = [word for method in methods for word in ("--method", method)]
    code, _, err = call("detect", *given, *named, "--format", "wen-jsonl")
    assert code == 2
    assert message in err


def test_a_call_in_python_names_one_method_or_several(given, tiny_folder, tmp_path):
    import unmemorize

    settings = {"prompts": str(tmp_path / "prompts.txt"), "seeds": 1, "steps": 2}
    one = unmemorize.detect(str(tiny_folder), run=str(tmp_path / "one"), method="dcs", **settings)
    two = unmemorize.detect(str(tiny_folder), run=str(tmp_path / "two"), method=("dcs", "noise-gap"), **settings)
    assert [row["prompt"] for row in one] == [row["prompt"] for row in two]
    assert list(two[0]["methods"]) == ["dcs", "noise-gap"]
