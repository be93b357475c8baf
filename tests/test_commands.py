"""Detect, explain and generate from the command line, rightly and wrongly used."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from hostile import complaints
from unmemorize.core.run import load_record


@pytest.fixture
def prompts(tmp_path):
    """Three prompts in a file with an unusual column."""
    path = tmp_path / "prompts.csv"
    path.write_text("n;words\n1;a green bicycle\n2;an owl on a fence\n3;oden, gadget\n")
    return path


def test_detect_ranks_every_prompt(call, tiny_folder, prompts):
    """JSON: one object a prompt, highest score first, with seeds and cost; nothing else on standard output."""
    arguments = ("--prompts", prompts, "--column", "words", "--seeds", 2, "--json")
    code, out, _ = call("detect", tiny_folder, *arguments)
    rows = json.loads(out)["prompts"]
    assert code == 0
    assert {row["prompt"] for row in rows} == {"a green bicycle", "an owl on a fence", "oden, gadget"}
    assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
    assert all(row["seeds"] == [0, 1] and row["evaluations"] == 2 for row in rows)


def test_detect_prints_a_table_and_writes_a_run(call, tiny_folder, prompts, tmp_path):
    """People get ranks; the run directory gets one row a prompt and seed, and the record of what was done."""
    run = tmp_path / "run"
    arguments = ("--prompts", prompts, "--column", "words", "--seeds", 2, "--run", run)
    code, out, _ = call("detect", tiny_folder, *arguments)
    assert code == 0
    assert "an owl on a fence" in out
    assert "6 denoiser evaluations" in out
    rows = pq.read_table(run / "scores" / "detect.parquet").to_pylist()
    assert [(row["id"], row["seed"]) for row in rows] == [(f"0000{i}", s) for i in range(3) for s in range(2)]
    record = load_record(run)
    assert record.status == "finished"
    assert record.data["prompts"].count == 3
    assert call("detect", tiny_folder, *arguments)[1] == out  # continued, nothing scored again
    assert call("detect", tiny_folder, *arguments, "--steps", 20)[0] == 2  # another run's directory


def test_detect_speaks_the_public_format(call, tiny_folder, prompts):
    """JSON lines of the public code: per prompt, lists of images by steps, in the order of the file."""
    arguments = (
        "--prompts",
        prompts,
        "--column",
        "words",
        "--seeds",
        2,
        "--method",
        "noise-gap:first=1,last=4",
        "--steps",
        6,
    )
    code, out, _ = call("detect", tiny_folder, *arguments, "--format", "wen-jsonl")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [line["prompt"] for line in lines] == ["a green bicycle", "an owl on a fence", "oden, gadget"]
    for line in lines:
        assert set(line) == {"uncond_noise_norm", "text_noise_norm", "prompt"}
        assert [len(steps) for steps in line["text_noise_norm"]] == [3, 3]
        assert [len(steps) for steps in line["uncond_noise_norm"]] == [3, 3]


def test_detect_of_a_window_is_the_mean_of_its_norms(call, tiny_folder, prompts):
    """The score of a window agrees with the norms that the public format lists."""
    arguments = ("--prompts", prompts, "--column", "words", "--seeds", 2, "--method", "noise-gap:last=3", "--steps", 6)
    detected = json.loads(call("detect", tiny_folder, *arguments, "--json")[1])["prompts"]
    scores = {row["prompt"]: row["score"] for row in detected}
    for line in call("detect", tiny_folder, *arguments, "--format", "wen-jsonl")[1].splitlines():
        norms = json.loads(line)
        mean = sum(map(sum, norms["text_noise_norm"])) / 6
        assert scores[norms["prompt"]] == pytest.approx(mean, rel=1e-5)


def test_explain_gives_every_word_a_number(call, tiny_folder):
    """JSON: words in order, what falls on special tokens apart, and the second opinion when asked."""
    code, out, _ = call("explain", tiny_folder, "an owl on a fence", "--seeds", 1, "--check", "--json")
    found = json.loads(out)
    assert code == 0
    assert [w["word"] for w in found["words"]] == ["an", "owl", "on", "a", "fence"]
    assert all(w["significance"] > 0 and "magnitude_lost_without" in w for w in found["words"])
    assert set(found["special"]) == {"begin", "end", "padding"}
    assert -1 <= found["rank_agreement"] <= 1


@pytest.mark.parametrize(
    ("method", "evaluations", "special"),
    [
        ("gradient", 2, {"begin", "end", "padding"}),
        ("gradient-input", 2, {"begin", "end", "padding"}),
        ("leave-one-out", 7, set()),
    ],
)
def test_explain_by_each_method(call, tiny_folder, method, evaluations, special):
    """Every method has a value a word, its own tokens apart, and a cost that is counted."""
    arguments = ("explain", tiny_folder, "an owl on a fence", "--seeds", 1, "--method", method)
    code, out, _ = call(*arguments, "--json")
    result = json.loads(out)
    assert code == 0
    assert (result["method"], result["evaluations"], set(result["special"])) == (method, evaluations, special)
    assert len({w["significance"] for w in result["words"]}) == 5
    assert call(*arguments)[0] == 0


def test_explain_writes_pictures_with_maps(call, tiny_folder, tmp_path):
    """A picture and a map of its size a seed, bright where it is highest; words are not asked for, nor written over."""
    out = tmp_path / "maps"
    arguments = ("explain", tiny_folder, "an owl", "--seeds", 2, "--steps", 2, "--method", "score-map", "--out", out)
    code, printed, err = call(*arguments, "--json")
    assert code == 0, err
    rows = json.loads(printed)["pictures"]
    assert [Path(row["map"]).name for row in rows] == ["0-map.png", "1-map.png"]
    for row in rows:
        with Image.open(row["image"]) as picture, Image.open(row["map"]) as shown:
            assert picture.size == shown.size == (32, 32)
            assert shown.convert("L").getextrema()[1] == 255
    for wrong, message in ((arguments, "not empty"), ((*arguments[:-1], tmp_path / "new", "--check"), "--check")):
        code, _, err = call(*wrong)
        assert code == 2
        assert message in err
    assert not (tmp_path / "new").exists()


def test_explain_prints_hostile_words_as_they_are(call, tiny_folder):
    """Markup in a prompt is text."""
    code, out, _ = call("explain", tiny_folder, "[bold red]owl[/] [/nothing]", "--seeds", 1)
    assert code == 0
    assert "[bold red]owl[/] [/nothing]" in out.replace("\n", " ")


def test_generate_writes_a_picture_a_seed(call, tiny_folder, tmp_path):
    """Unguarded pictures, and guarded ones with what the guard saw."""
    plain, guarded = tmp_path / "plain", tmp_path / "guarded"
    arguments = ("a green bicycle", "--pictures", 2, "--steps", 2, "--json")
    assert call("generate", tiny_folder, *arguments, "--out", plain)[0] == 0
    limits = ("--mitigation", "guard:threshold=0,target=0.001")
    code, out, _ = call("generate", tiny_folder, *arguments, "--out", guarded, *limits)
    rows = json.loads(out)["pictures"]
    assert code == 0
    assert [row["acted"] for row in rows] == [True, True]
    assert all(row["magnitude_after"] < row["magnitude"] for row in rows)
    for seed in range(2):
        with Image.open(plain / f"{seed}.png") as a, Image.open(guarded / f"{seed}.png") as b:
            assert a.size == b.size == (32, 32)
            assert a.tobytes() != b.tobytes()


@pytest.mark.parametrize(
    ("mitigation", "seen"), [("per-sample-noise:target=0,iterations=3", True), ("opposite-guidance", False)]
)
def test_generate_says_what_a_mitigation_did_before_the_first_step(call, tiny_folder, tmp_path, mitigation, seen):
    """To noise as to prompts; of one that acts later there is nothing to say."""
    arguments = ("a green bicycle", "--pictures", 2, "--steps", 2, "--mitigation", mitigation, "--out", tmp_path / "p")
    code, out, err = call("generate", tiny_folder, *arguments, "--json")
    assert code == 0, err
    rows = json.loads(out)["pictures"]
    assert [row.get("acted") for row in rows] == [True if seen else None] * 2
    assert all(row["magnitude_after"] < row["magnitude"] for row in rows if seen)


WORDS = ["--column", "words"]
WRONG = {
    "an unknown detector": (
        ["detect", "MODEL", "--prompts", "FILE", "--method", "luck", *WORDS],
        "no such detector: choose one of ",
    ),
    "no such column": (["detect", "MODEL", "--prompts", "FILE"], "--column"),
    "no prompts": (["detect", "MODEL"], "--prompts"),
    "steps that are no number": (
        ["detect", "MODEL", "--prompts", "FILE", "--method", "noise-gap:last=all", *WORDS],
        "noise-gap:last='all'",
    ),
    "steps beyond the last": (
        ["detect", "MODEL", "--prompts", "FILE", "--method", "noise-gap:last=60", *WORDS],
        "sampling has 50 steps",
    ),
    "steps backwards": (["explain", "MODEL", "a", "--method", "gradient:first=3,last=2"], "a first step and a later"),
    "a window of leaving out": (["explain", "MODEL", "a", "--method", "leave-one-out:last=2"], "no setting 'last'"),
    "nothing to explain": (["explain", "MODEL", " "], "the prompt is empty"),
    "no such model": (["explain", "./nowhere", "a"], "no such folder"),
    "a folder in use": (["generate", "MODEL", "a", "--out", "."], "not empty"),
    "maps over a device": (["explain", "MODEL", "a", "--method", "curvature-map", "--out", "/dev/null"], "a device"),
    "maps in a system folder": (["explain", "MODEL", "a", "--method", "curvature-map", "--out", "/proc/x"], "a system"),
    "half the limits": (["generate", "MODEL", "a", "--mitigation", "guard:target=1"], "come together"),
    "a guard that does not know what is ordinary": (
        ["generate", "MODEL", "a", "--mitigation", "guard"],
        "prompts like those it serves with --ordinary",
    ),
    "a missing file of ordinary prompts": (
        ["generate", "MODEL", "a", "--mitigation", "guard", "--ordinary", "none.txt"],
        "no such file",
    ),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_is_one_line_and_leaves_nothing(mistake, call, tiny_folder, prompts, monkeypatch):
    """Exit code 2, one line that says what and what to do, and no file."""
    arguments, expected = WRONG[mistake]
    monkeypatch.chdir(prompts.parent)
    places = {"MODEL": tiny_folder, "FILE": prompts}
    code, out, err = call(*(places.get(a, a) for a in arguments))
    assert (code, out) == (2, "")
    assert len(complaints(err)) == 1
    assert expected in err
    assert list(prompts.parent.iterdir()) == [prompts]
