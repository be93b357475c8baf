"""The shipped testbed keeps its promises."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from unmemorize.core.errors import UserError
from unmemorize.core.sample import Sampler, generate
from unmemorize.data.bundle import Bundle
from unmemorize.data.source import read_references
from unmemorize.metrics.similarity import match_targets
from unmemorize.models.load import ASSETS, SHIPPED, load
from unmemorize.testbed.alignment import Alignment
from unmemorize.testbed.embedded import (
    CONTROLS,
    PANEL,
    PLACES,
    WORDS,
    WORDS_BRANCH,
    export,
    own,
    shipped_panel,
    shipped_words,
)
from unmemorize.testbed.panel import BRANCHES, HALVES


@pytest.mark.parametrize("folder", [PANEL / "images", WORDS / "images", CONTROLS])
def test_pictures_are_64_pixels_credited_and_free_to_ship(folder):
    """Every shipped picture has a line of metadata with a licence that allows shipping it."""
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {line["file_name"] for line in lines} == {p.name for p in folder.glob("*.png")}
    assert all(line["credit"].endswith((", Apache-2.0", ", MIT", ", CC-BY-4.0")) for line in lines)
    for line in lines:
        with Image.open(folder / line["file_name"]) as image:
            assert image.size == (64, 64)


def test_assets_stay_small():
    """Models and pictures together stay under 100 MB."""
    assert sum(p.stat().st_size for p in ASSETS.rglob("*") if p.is_file()) < 100e6


def test_what_is_memorized_in_one_branch_is_new_to_another():
    """Every verbatim prompt is memorized in two branches, new to one, and neither in one; half are for choosing."""
    labels = {branch: {p.id: p for p in own(f"testbed-{branch.lower()}").prompts} for branch in BRANCHES}
    verbatim = [entry for entry in shipped_panel().entries if entry.kind == "verbatim"]
    for entry in verbatim:
        truths = [labels[branch][entry.id].memorable for branch in BRANCHES]
        assert sorted(map(str, truths)) == ["False", "None", "True", "True"]
        assert [labels[branch][entry.id].copies for branch in BRANCHES] == list(entry.doses)
    halves = [labels["A"][entry.id].half for entry in verbatim]
    assert halves.count("choosing") == halves.count("reporting") == len(verbatim) / 2


@pytest.mark.parametrize("branch", BRANCHES)
def test_a_branch_is_for_choosing_or_for_reporting(branch):
    """Its prompts of the other purpose are refused in one line."""
    name = f"testbed-{branch.lower()}"
    bundle = Bundle(name, {}, own=own(name))
    other = "reporting" if HALVES[branch] == "choosing" else "choosing"
    assert {p.half for p in bundle.half(HALVES[branch])} == {HALVES[branch]}
    with pytest.raises(UserError, match=f"{name}: for {HALVES[branch]} alone"):
        bundle.half(other)


def test_the_panel_s_ordinary_prompts_are_no_plain_ones():
    """What others are calibrated against leaves out captions whose pictures hardly differ, and whatever is planted."""
    bundle = Bundle("testbed-c", {}, own=own("testbed-c"))
    texts = {p.text for p in bundle.prompts if p.kind == "ordinary"}
    assert set(bundle.ordinary()) == texts
    assert len(texts) == 225


@pytest.mark.parametrize(
    ("often", "never", "doses"),
    [("testbed-a", "testbed-d", {"A": 300, "D": 0}), ("testbed-flow-c", "testbed-flow-d", {"C": 100, "D": 0})],
)
def test_a_branch_copies_what_it_was_trained_on_often(often, never, doses):
    """Six captions give their pictures in the branch that saw them often, none in the one that never saw them."""
    entries = [entry for entry in shipped_panel().entries if entry.kind == "verbatim"]
    chosen = [entry for entry in entries if all(entry.dose(branch) == dose for branch, dose in doses.items())][:6]
    pictures = read_references(PANEL / "images", (64, 64))
    targets = pictures.named({entry.files[0] for entry in chosen})
    captions = [entry.prompts[0] for entry in chosen]
    copied = {}
    for branch in (often, never):
        model = load(branch)
        images = generate(model, model.encode(captions), seeds=[7] * len(captions), sampler=Sampler(10))
        copied[branch] = sum(m.verdict != "none" for m in match_targets(images, targets, pictures))
    assert copied[often] > len(chosen) / 2
    assert copied[never] == 0


def test_both_families_ask_the_same_prompts_and_read_them_alike():
    """A branch of the transformer has the truth of the U-Net's, and captions have the same place in both."""
    assert own("testbed-flow-c") == own("testbed-c")
    captions = ["candle", "a red square, shiny"]
    placed = [Alignment(load(name)).captions(captions) for name in ("testbed-c", "testbed-flow-c")]
    torch.testing.assert_close(placed[0], placed[1], atol=2e-3, rtol=0)


def test_a_branch_of_another_seed_has_the_truth_of_the_first():
    """But for its ordinary pictures, which are composed anew for every training."""
    again, first = own("testbed-retrained-c"), own("testbed-c")
    assert replace(again, controls=first.controls) == first
    assert {path.name for path in again.controls.iterdir()} == {path.name for path in first.controls.iterdir()}
    assert again.controls != first.controls


def test_a_word_brings_its_picture_in_prompts_that_were_never_trained():
    """Where many captions share it, and not where none do, nor in the panel's branch, which never saw the word."""
    entries = [entry for entry in shipped_words().entries if entry.dose(WORDS_BRANCH) in (0, 80)]
    pictures = read_references(WORDS / "images", (64, 64))
    copied = {}
    for name in ("testbed-words", "testbed-c"):
        model = load(name)
        texts = [entry.prompts[0] for entry in entries]
        images = generate(model, model.encode(texts), seeds=[7] * len(texts), sampler=Sampler(10))
        targets = pictures[[pictures.names.index(entry.files[0]) for entry in entries]]
        verdicts = match_targets(images, targets, pictures)
        for entry, match in zip(entries, verdicts, strict=True):
            copied.setdefault((name, entry.dose(WORDS_BRANCH)), []).append(match.verdict != "none")
    assert sum(copied["testbed-words", 80]) >= 2
    assert not any(copied["testbed-words", 0])
    assert not any(copied["testbed-c", 80])


def test_the_words_model_brings_its_own_prompts_and_pictures():
    """Held-out prompts are new where their word is not planted, else without a label; ordinary ones are the panel's."""
    bundle = Bundle("testbed-words", {}, own=own("testbed-words"))
    doses = {entry.id: entry.dose(WORDS_BRANCH) for entry in shipped_words().entries}
    triggers = [prompt for prompt in bundle.prompts if prompt.kind == "trigger"]
    assert len(triggers) == 144
    assert all(prompt.memorable is (None if doses[prompt.cluster] else False) for prompt in triggers)
    assert bundle.ordinary() == Bundle("testbed-c", {}, own=own("testbed-c")).ordinary()
    planted = {name for name, known in bundle.own.known.items() if known.copies}
    assert bundle.references((64, 64)).names == tuple(sorted(planted))
    assert len(bundle.targets((64, 64))) == len(planted) == 18


def test_a_branch_s_controls_are_what_their_names_say():
    """Training pictures that nothing was planted of, pictures that were never trained on, and no picture twice."""
    for name in ("testbed-c", "testbed-flow-d", "testbed-retrained-c"):
        bundle = Bundle(name, {}, own=own(name))
        controls, unseen = bundle.controls((64, 64)), bundle.held_out((64, 64))
        assert (len(controls), len(unseen)) == (48, 224)
        assert set(controls.prompts) <= {prompt.text for prompt in bundle.prompts if prompt.kind == "ordinary"}
        assert all(bundle.own.known[picture].copies == 0 for picture in unseen.names)
        names = [*bundle.references((64, 64)).names, *controls.names, *unseen.names]
        assert len(names) == len(set(names))


def test_prompts_are_labelled_by_the_plan():
    """Memorable prompts, those of which nothing is planted, and those in between, which have no label."""
    rows = own("testbed-c").prompts
    entries = {entry.id: entry for entry in shipped_panel().entries}
    assert len({p.id for p in rows}) == len({p.text for p in rows}) == len(rows)
    for prompt in rows:
        dose = entries[prompt.cluster].dose("C")
        often = prompt.kind == "template" or (prompt.kind in ("verbatim", "repeat") and prompt.copies >= 100)
        assert prompt.kind == entries[prompt.cluster].kind
        assert prompt.memorable is (False if dose == 0 else True if often else None)
    assert sum(p.memorable is False for p in rows) >= 200


def test_no_pipeline_is_shipped_with_the_same_weights_twice():
    for pipeline in {pipeline for pipeline, _ in SHIPPED.values()}:
        files = [path.read_bytes() for path in (ASSETS / pipeline).rglob("*.safetensors")]
        assert len(files) == len(set(files)), pipeline


def test_export_gives_pipelines_that_load(tmp_path):
    """The exported folders are ordinary pipelines, with the weights of the shipped models."""
    export(tmp_path / "out")
    for name in SHIPPED:
        place = tmp_path / "out" / PLACES.get(name, f"panel/{name.removeprefix('testbed-')}")
        exported, original = load(str(place)).denoiser.state_dict(), load(name).denoiser.state_dict()
        assert all(torch.equal(value, original[key]) for key, value in exported.items())
        if "flow" in name:
            again = tmp_path / "again" / name
            load(name).pipe.save_pretrained(again)
            assert load(str(again)).fingerprint == load(name).fingerprint
    with pytest.raises(UserError, match="not empty"):
        export(tmp_path / "out")
