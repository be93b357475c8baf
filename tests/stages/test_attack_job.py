"""`unmemorize attack`: a run and its files, resumption, controls, and what is refused."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from unmemorize.attack.adaptive import Adaptive
from unmemorize.core.errors import UserError
from unmemorize.core.hooks import checkpointed
from unmemorize.core.run import load_record
from unmemorize.core.specs import AttackSpec
from unmemorize.data.source import read_references
from unmemorize.mitigate.edit import Edit
from unmemorize.models.load import load
from unmemorize.stages import attack as job
from unmemorize.stages.attack import run_attack
from unmemorize.stages.inputs import bundle_of
from unmemorize.study.controls import choose_subjects, derive
from unmemorize.study.copies import copy_check


def save(folder, count, first=0, caption="an owl on a fence"):
    """Random pictures with captions beside them."""
    folder.mkdir()
    for i in range(first, first + count):
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"{caption} {i}")
    return folder


@pytest.fixture
def spec(tiny_folder, tmp_path):
    """An attack of two pictures on the tiny pipeline, two updates of two rows."""
    images, controls = save(tmp_path / "images", 2), save(tmp_path / "controls", 7, 50)
    return AttackSpec(
        model=str(tiny_folder),
        targets=str(images),
        controls=str(controls),
        method="dori:batch=2",
        updates=2,
        restarts=2,
        pictures=2,
        steps=2,
    )


def files(run):
    return {str(p.relative_to(run)): p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file()}


def test_a_killed_attack_ends_with_the_same_bytes(spec, tmp_path, monkeypatch):
    """Stopped after its first shard and continued: every file as if it had not been."""
    summary = run_attack(spec, tmp_path / "whole")
    original, calls = job.extraction, []

    def stop_at_the_second(*arguments, **named):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments, **named)

    monkeypatch.setattr(job, "SHARD", 8)
    monkeypatch.setattr(job, "extraction", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        run_attack(spec, tmp_path / "parts")
    assert load_record(tmp_path / "parts").status == "running"
    monkeypatch.setattr(job, "extraction", original)
    assert run_attack(spec, tmp_path / "parts") == summary
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    assert load_record(tmp_path / "parts").status == "finished"


def test_shards_do_not_matter_for_the_numbers(spec, tmp_path, monkeypatch):
    """Other pictures in the same shard change rounding alone."""
    whole = run_attack(spec, tmp_path / "whole")
    monkeypatch.setattr(job, "SHARD", 3)
    parts = run_attack(spec, tmp_path / "parts")
    for group, rows in whole["curve"].items():
        for a, b in zip(rows, parts["curve"][group], strict=True):
            assert a["copies"] == b["copies"]
            assert a["value"] == pytest.approx(b["value"], abs=1e-3)
            assert a["moved"] == pytest.approx(b["moved"], rel=1e-3)


def test_the_run_holds_rows_embeddings_and_pictures(spec, tmp_path):
    """Saved embeddings give the shown picture through the pipeline itself."""
    run = tmp_path / "run"
    summary = run_attack(spec, run)
    rows = pq.read_table(run / "scores" / "attack.parquet").to_pylist()
    assert {r["step"] for r in rows} == {None, 0, 1, 2}
    assert len(rows) == (2 + 6 + summary["pictures"]["unseen"]) * (2 + 2 * 3 * 2)
    assert summary["steps"] == 2
    assert summary["evaluations"] == 4
    assert summary["pictures"]["control"] == 6
    row = next(r for r in rows if r["id"] == "control-0000")
    embeds = load_file(run / "embeds" / f"{row['embeds']}.safetensors")["control-0000"]
    pipe = load(spec.model).pipe
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(100)
    made = pipe(prompt_embeds=embeds[:1], negative_prompt="", num_inference_steps=2, generator=generator).images[0]
    shown = np.asarray(Image.open(run / "images" / "control-0000-attacked.png")).astype(int)
    assert np.abs(np.asarray(made).astype(int) - shown).max() <= 1
    assert (run / "curves.svg").read_text().startswith("<?xml")
    with Image.open(run / "sheet.png") as sheet:
        assert min(sheet.size) > 100


def test_the_adaptive_attack_has_controls_and_a_budget_too(spec, tmp_path, monkeypatch):
    """All or nothing: the prompts, and what many searches found; cost is that of all of them."""
    monkeypatch.setattr(Adaptive, "__init__", functools.partialmethod(Adaptive.__init__, seeds=(90,), sampling=1))
    asked = dataclasses.replace(spec, method="adaptive", restarts=1, updates=1)
    summary = run_attack(asked, tmp_path / "run")
    assert [row["steps"] for row in summary["curve"]["control"]] == [0, 1]
    assert summary["evaluations"] == 8 * (2 + 2 * 2)
    assert summary["search_budget"] in (None, 0, 1)


def test_checkpointing_changes_memory_and_not_numbers(spec, tmp_path):
    """The same numbers, and the flag is put back."""
    plain = run_attack(spec, tmp_path / "plain")
    less = run_attack(dataclasses.replace(spec, checkpointing=True), tmp_path / "less")
    for a, b in zip(plain["curve"]["attacked"], less["curve"]["attacked"], strict=True):
        assert a["moved"] == pytest.approx(b["moved"], rel=1e-4)
    denoiser = load(spec.model).denoiser
    with checkpointed(denoiser):
        assert denoiser.is_gradient_checkpointing
    assert not denoiser.is_gradient_checkpointing


def test_json_on_the_command_line(spec, call, tmp_path):
    """The six numbers and nothing else; then the same in words, from the run that is there."""
    named = ("--targets", spec.targets, "--controls", spec.controls, "--updates", 1, "--pictures", 1)
    arguments = ("attack", spec.model, *named, "--method", "dori:batch=1", "--steps", 1, "--run", tmp_path / "run")
    code, out, _ = call(*arguments, "--json")
    found = json.loads(out)
    assert code == 0
    keys = [
        "schema_version",
        "copy_rate",
        "original_copy_rate",
        "control_copy_rate",
        "search_budget",
        "evaluations",
        "steps",
    ]
    assert list(found) == keys
    code, out, _ = call(*arguments)
    assert code == 0
    assert "mirrored" in out


def test_the_testbed_brings_pictures_and_controls():
    """The memorable verbatim pictures, as many ordinary ones, and as many never trained on; all can be brought back."""
    model = load("testbed")
    bundle = bundle_of(AttackSpec())
    check = copy_check(model, bundle.references(model.image_size), "testbed")
    subjects = choose_subjects(model, bundle, check)
    assert [len(part) for part in subjects.groups.values()] == [48, 47, 48]  # one control is not within reach
    assert all(name.startswith("verbatim-") for name in subjects.attacked.names)
    assert all(name.startswith("trained-") for name in subjects.control.names)
    assert all(bundle.own.known[name].copies == 0 for name in subjects.unseen.names)
    for pictures in (subjects.control, subjects.unseen):
        with torch.no_grad():
            coded = model.decode(model.invert(pictures.images))
        assert "none" not in {m.verdict for m in check.against(coded, pictures)}
    assert {m.verdict for m in check.match(subjects.unseen.images)} == {"none"}


def test_what_is_its_own_mirror_image_is_no_unseen_picture(spec):
    """A grey symmetric picture, mirrored and with channels exchanged, is the training picture again."""
    folder = save(Path(spec.targets) / "more", 1)
    Image.new("RGB", (32, 32), (90, 90, 90)).save(folder / "grey.png")
    check = copy_check(load(spec.model), read_references(folder, (32, 32)), spec.model)
    assert len(derive(check.references, check.match)) == 1
    with pytest.raises(UserError, match="--held-out"):
        derive(check.references[[1]], check.match)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"updates": 0}, "--updates 0"),
        ({"restarts": 0}, "--restarts 0"),
        ({"method": "dori:batch=0"}, "greater than or equal to 1"),
        ({"method": "dori:lr=-1"}, "greater than or equal to 0"),
        ({"method": "none"}, "choose one of adaptive, dori"),
        ({"method": "adaptive:lr=1"}, "no setting 'lr'"),
        ({"method": "adaptive", "init": "random"}, "--init"),
        ({"dtype": "int8"}, "name float32"),
        ({"targets": ""}, "--targets"),
        ({"targets": "missing"}, "missing: no such file or folder"),
        ({"controls": ""}, "--controls"),
        ({"controls": "missing"}, "missing: no such file or folder"),
        ({"mitigation": "missing.safetensors"}, "no such file"),
        ({"mitigation": "prayer"}, "no such mitigation"),
    ],
)
def test_what_cannot_be_attacked_is_refused_before_anything_is_written(spec, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        run_attack(dataclasses.replace(spec, **change), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_damaged_pictures_missing_prompts_and_attacked_controls(spec, tmp_path):
    """Each in one line that names the picture or the folder."""
    folder = Path(spec.targets)
    with pytest.raises(UserError, match="attacked pictures only"):
        run_attack(dataclasses.replace(spec, controls=spec.targets), tmp_path / "run")
    (folder / "0.txt").unlink()
    with pytest.raises(UserError, match=r"0\.png: its prompt is not known"):
        run_attack(spec, tmp_path / "run")
    (folder / "0.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"0\.png: picture cannot be read"):
        run_attack(spec, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_edits_of_this_model_alone(spec, tmp_path):
    """An edit of another model is refused; one of this model is applied for the attack and recorded."""
    model = load(spec.model)
    name = next(n for n, _ in model.denoiser.named_modules() if n.endswith("attn2.to_v"))
    width = model.denoiser.get_submodule(name).out_features
    for hashed, file in (("0" * 64, "other"), (model.fingerprint, "own")):
        Edit({name: torch.ones(width, dtype=torch.bool)}, {}, hashed).save(tmp_path / f"{file}.safetensors")
    with pytest.raises(UserError, match="made for another model"):
        run_attack(dataclasses.replace(spec, mitigation=str(tmp_path / "other.safetensors")), tmp_path / "other")
    assert not (tmp_path / "other").exists()
    edited = run_attack(dataclasses.replace(spec, mitigation=str(tmp_path / "own.safetensors")), tmp_path / "own")
    free = run_attack(spec, tmp_path / "free")
    assert edited["curve"]["attacked"][0]["value"] != free["curve"]["attacked"][0]["value"]
    assert "mitigation" in load_record(tmp_path / "own").data


def test_a_directory_that_holds_something_else(spec, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something else"):
        run_attack(spec, tmp_path)
    assert not (tmp_path / "run.json").exists()
