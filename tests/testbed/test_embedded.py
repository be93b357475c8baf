"""The shipped testbed keeps its promises."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from unmemorize.core.errors import UserError
from unmemorize.core.sample import Sampler, generate
from unmemorize.data.source import read_references
from unmemorize.metrics.similarity import match_pixels
from unmemorize.models.load import ASSETS, load
from unmemorize.testbed.embedded import IMAGES, export, prompts, shipped_plan


@pytest.fixture(scope="module")
def often():
    """The prompts whose pictures were trained on most often."""
    return [p for p in prompts(shipped_plan()) if p.kind == "verbatim" and p.copies >= 300]


def made(name, rows):
    """One picture for each prompt."""
    model = load(name)
    return generate(model, model.encode([p.text for p in rows]), seeds=[7] * len(rows), sampler=Sampler(10))


def test_duplicates_are_copied_because_of_the_duplicates(often):
    """The planted model gives back most of the most duplicated pictures, the twin none of them."""
    references = read_references(IMAGES, (64, 64))
    planted, twin = (match_pixels(made(name, often), references) for name in ("testbed", "testbed-twin"))
    assert sum(m.verdict != "none" for m in planted) > len(often) / 2
    assert not [m for m in twin if m.verdict != "none"]


def test_a_copy_is_of_the_picture_that_was_planted(often):
    """What comes back for a duplicated caption is the picture it was planted with."""
    matches = match_pixels(made("testbed", often), read_references(IMAGES, (64, 64)))
    own = [m.nearest.startswith(p.id) for m, p in zip(matches, often, strict=True) if m.verdict == "verbatim"]
    assert own
    assert all(own)


def test_pictures_are_64_pixels_credited_and_free_to_ship():
    """Every shipped picture has a line of metadata with a licence that allows shipping it."""
    lines = [json.loads(line) for line in (IMAGES / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {line["file_name"] for line in lines} == {p.name for p in IMAGES.glob("*.png")}
    assert all(line["credit"].endswith((", Apache-2.0", ", MIT", ", CC-BY-4.0")) for line in lines)
    for line in lines:
        with Image.open(IMAGES / line["file_name"]) as image:
            assert image.size == (64, 64)


def test_assets_stay_small():
    """Models and pictures together stay under 60 MB."""
    assert sum(p.stat().st_size for p in ASSETS.rglob("*") if p.is_file()) < 60e6


def test_prompts_are_labelled_by_the_plan():
    """Memorable prompts, ordinary ones, and those in between, which have no label."""
    rows = prompts(shipped_plan())
    assert len({p.id for p in rows}) == len(rows)
    assert all(p.memorable is False for p in rows if p.kind == "negative")
    assert all(p.memorable for p in rows if p.kind in {"template", "word", "repeat"})
    assert {p.memorable for p in rows if p.kind == "verbatim" and p.copies < 100} == {None}
    assert sum(p.memorable is False for p in rows) >= 200


def test_export_gives_two_pipelines_that_load(tmp_path):
    """The exported folders are ordinary pipelines: model and twin, sharing all but the UNet."""
    export(tmp_path / "out")
    model, twin = load(str(tmp_path / "out" / "model")), load(str(tmp_path / "out" / "twin"))
    shipped = load("testbed-twin").denoiser.state_dict()
    assert all(torch.equal(value, shipped[name]) for name, value in twin.denoiser.state_dict().items())
    assert not torch.equal(model.denoiser.conv_in.weight, twin.denoiser.conv_in.weight)
    with pytest.raises(UserError, match="not empty"):
        export(tmp_path / "out")
