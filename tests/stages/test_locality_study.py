"""The study of locality as a command: what it prints, leaves and refuses, and that it continues."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from unmemorize.core.results import Match
from unmemorize.stages import locality as job

COLOURS = ("red", "green", "blue")


@pytest.fixture
def call(call, monkeypatch, tmp_path):
    """Run the command line beside a folder of three pictures, two prompts, and ordinary prompts."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    for colour in COLOURS:
        Image.new("RGB", (32, 32), colour).save(tmp_path / "images" / f"{colour}.png")
    (tmp_path / "prompts.txt").write_text("an owl on a fence\n[red]the old harbour\n")
    (tmp_path / "one.txt").write_text("a green bicycle\n")
    (tmp_path / "ordinary.txt").write_text("a green bicycle\ntwo red kites over a field\na lighthouse\n")
    return call


@pytest.fixture
def copying(monkeypatch):
    """As if three of four embeddings gave the red picture, and every prompt another."""

    def matches(study, cond):
        if cond.ids is None:
            return [[Match("red.png", 0, 0, "verbatim" if row.sum() > -10 else "none", True)] for row in cond.embeds]
        return [[Match(f"{COLOURS[i % 3]}.png", 0, 0, "verbatim")] for i in range(len(cond))]

    monkeypatch.setattr(job._Study, "matches", matches)


GIVEN = (
    "--references",
    "images",
    "--prompts",
    "prompts.txt",
    "--ordinary",
    "ordinary.txt",
    "--updates",
    2,
    "--inits",
    4,
)
METHODS = ("--method", "wanda:sparsity=0.1", "--method", "nemo:layers=all,refine=false,threshold=-1,seeds=2")
RED = ("--target", "images/red.png", *GIVEN, "--pictures", 1, "--steps", 1, *METHODS, "--run", "run")


def test_a_study_prints_json_and_leaves_everything(call, copying, tiny_folder, tmp_path):
    """Counts agree; every pair's distance and every selection is a row; embeddings load again."""
    code, out, err = call("locality", tiny_folder, *RED, "--json")
    assert code == 0, err
    result = json.loads(out)
    keys = [
        "schema_version",
        "image",
        "inits",
        "copy_rate",
        "mirrored",
        "embeddings",
        "moved",
        "distance",
        "layers",
        "steps",
    ]
    assert list(result) == [*keys, "evaluations", "criterion_errors", "run"]
    assert result["image"] == "red.png"
    assert result["mirrored"] == 1
    attacked = pq.read_table(tmp_path / "run" / "attack.parquet").to_pylist()
    assert all(row["mirrored"] == row["copies"] for row in attacked)
    assert pq.read_table(tmp_path / "run" / "prompts.parquet")["mirrored"].to_pylist() == [0, 0]
    assert result["evaluations"] == 4 * 2 * 8
    kept = result["embeddings"]["adversarial"]
    assert 2 <= kept <= 4
    embeds = load_file(tmp_path / "run" / "embeddings.safetensors")
    assert {name: len(rows) for name, rows in embeds.items()} == result["embeddings"]
    expected = torch.pdist(embeds["adversarial"].flatten(1)).mean()
    assert result["distance"]["adversarial"]["value"] == pytest.approx(expected.item(), rel=1e-5)
    assert list(dict.fromkeys(layer["method"] for layer in result["layers"])) == ["wanda", "nemo"]
    for layer in result["layers"]:
        assert set(layer["agreement"]) == set(result["embeddings"])
        assert all(0 <= found["value"] <= 1 for found in layer["agreement"].values())
    rows = pq.read_table(tmp_path / "run" / "selections.parquet").to_pylist()
    selected = {(row["group"], row["embedding"], row["method"]) for row in rows}
    assert len(selected) == 2 * sum(result["embeddings"].values())
    sizes = {(layer["method"], layer["layer"]): layer["units"] for layer in result["layers"]}
    assert {(row["method"], row["layer"]): row["size"] for row in rows if row["layer"]} == sizes
    assert not list((tmp_path / "run").rglob(".*"))


def test_what_is_done_is_not_done_again(call, copying, tiny_folder, tmp_path, monkeypatch):
    """After a kill the missing pieces alone are computed, and the result is the same."""
    first = call("locality", tiny_folder, *RED, "--json")[1]
    (tmp_path / "run" / "shards" / "selections" / "000000000.parquet").unlink()

    def attacked(*args, **options):
        raise AssertionError("attacked again")

    monkeypatch.setattr(job.Dori, "attack", attacked)
    assert call("locality", tiny_folder, *RED, "--batch", 8, "--json")[1] == first
    code, out, _ = call("locality", tiny_folder, *RED)
    assert code == 0
    assert "random inits lead to copies; 100% of the copies are mirrored" in out
    assert call("locality", tiny_folder, *RED, "--limit", 1)[0] == 2


WRONG = {
    "no such picture": (("--target", "images/yellow.png", *GIVEN), "not one of the 3 pictures"),
    "no picture": (GIVEN, "--target"),
    "no copies": (RED, "0 of 4 inits lead to copies"),
    "no prompts": (("--target", "images/red.png", "--references", "images"), "--prompts"),
    "one ordinary prompt": (
        tuple("one.txt" if given == "ordinary.txt" else given for given in RED),
        "one.txt: one prompt",
    ),
    "no pictures": (("--target", "red.png", "--prompts", "prompts.txt"), "--references"),
    "a method twice": ((*RED, "--method", "wanda:sparsity=0.2"), "wanda is named twice"),
    "no such method": (("--target", "images/red.png", *GIVEN, "--method", "prayer"), "no such localizer"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_is_one_line(call, tiny_folder, monkeypatch, mistake):
    """Exit code 2, what is wrong, and no result."""
    monkeypatch.setattr(job._Study, "matches", lambda study, cond: [[Match("red.png", 1, 1, "none")]] * len(cond))
    arguments, expected = WRONG[mistake]
    code, out, err = call("locality", tiny_folder, *arguments)
    assert (code, out) == (2, "")
    assert expected in " ".join(err.split())


@pytest.mark.parametrize(
    ("copies", "expected"), [("embedding", "1 of 4 inits lead"), ("prompt", "1 of 2 prompts copy")]
)
def test_one_alone_has_nothing_to_compare_with(call, tiny_folder, monkeypatch, copies, expected):
    """One embedding, or prompts that all copy one picture, are refused with their number."""

    def matches(study, cond):
        verdicts = ["verbatim"] + ["verbatim" if cond.ids is not None or copies == "prompt" else "none"] * (
            len(cond) - 1
        )
        return [[Match("red.png", 0, 0, verdict)] for verdict in verdicts]

    monkeypatch.setattr(job._Study, "matches", matches)
    code, _, err = call("locality", tiny_folder, *RED)
    assert code == 2
    assert expected in " ".join(err.split())


def test_duplicates_of_the_picture_count(tiny_folder):
    """A copy of another file with the same picture is a copy of it."""
    from unmemorize.metrics.similarity import References

    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images[2] = images[0] + 0.01
    references = References(("a", "b", "c"), images, (None,) * 3, (None,) * 3)
    assert job._same_picture(references, "c") == ["a", "c"]
    assert job._same_picture(references, "b") == ["b"]
