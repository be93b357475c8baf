"""`unmemorize mitigate`: what it prints, writes, continues and refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from unmemorize.core.sample import Sampler, generate
from unmemorize.data.pictures import save_image
from unmemorize.models.load import load

QUICK = ("--updates", 3, "--pictures", 1, "--steps", 2, "--attack-updates", 1)
MEMORIES = ("an owl on a fence", "the old ```harbour``` [red]")


@pytest.fixture(scope="module")
def folders(tiny_folder, tmp_path_factory):
    """What the tiny model makes of two captions at seed 0, which it therefore copies; ordinary pictures; strangers."""
    root = tmp_path_factory.mktemp("pictures")
    model = load(str(tiny_folder))
    made = generate(model, model.encode(MEMORIES), seeds=[0, 0], sampler=Sampler(2))
    rng = np.random.default_rng(0)
    for k, caption in enumerate(MEMORIES):
        save_image(made[k], root / "memorized" / f"{k}.png")
        (root / "memorized" / f"{k}.txt").write_text(caption)
    for k in range(8):
        for name in ("ordinary", "strangers"):
            (root / name).mkdir(exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(root / name / f"{k}.png")
            (root / name / f"{k}.txt").write_text(f"word{k} other{k} thing{k}")
    (root / "silent").mkdir()
    save_image(made[0], root / "silent" / "0.png")
    (root / "none").mkdir()
    return root


@pytest.fixture
def options(folders, tiny_folder, tmp_path, monkeypatch):
    """The arguments of a quick run."""
    monkeypatch.chdir(tmp_path)
    return [tiny_folder, "--targets", folders / "memorized", "--controls", folders / "ordinary", *QUICK]


def test_a_dry_run_counts_updates_checks_and_measurements(call, options, tmp_path):
    """Three updates of two rows, as a run then counts; nothing is written."""
    from unmemorize.data.bundle import Bundle
    from unmemorize.study.pairs import ordinary_pictures

    given = ("mitigate", *options, "--method", "deletion:batch=2,check_every=1", "--out", "cured", "--dry-run")
    code, out, err = call(*given, "--json")
    assert code == 0, err
    expected = json.loads(out)
    calls = 2 * 2  # steps, and both halves of guidance
    measured = expected["evaluations"].pop("measure")
    assert expected["evaluations"] == {"updates": 6, "checks": 3 * 2 * (8 + calls)}
    held_out = len(ordinary_pictures(Bundle("", {"controls": str(options[4])}), (32, 32)).held_out)
    # Before and after, a picture of every prompt; from either start an attack of eight rows, and its picture.
    assert measured == 2 * (2 + held_out) * calls + 2 * 2 * (8 + calls)
    assert expected["items"] == 2
    assert list(tmp_path.iterdir()) == []


def test_json_folder_and_card(call, options, tmp_path, tiny_folder):
    """Rates, quality and cost; a folder that diffusers loads, with other weights; a card without captions."""
    from diffusers import StableDiffusionPipeline

    code, out, _ = call("mitigate", *options, "--method", "deletion:batch=2", "--out", "cured", "--json")
    assert code == 0
    found = json.loads(out)
    rates = ["copy_rate_before", "copy_rate_after", "attacked_copy_rate_after"]
    assert list(found) == ["schema_version", *rates, "quality", "evaluations"]
    assert found["copy_rate_before"] == 1.0
    assert found["evaluations"] == 6
    for group in ("ordinary", "neighbours"):
        assert {"kid", "fid", "prompts"} <= found["quality"][group].keys()
        assert len(found["quality"][group]["fid"]["change"]) == 3
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "cured", safety_checker=None)
    before = StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None)
    assert not (pipe.unet.conv_in.weight == before.unet.conv_in.weight).all()
    text = (tmp_path / "cured" / "README.md").read_text()
    assert "2 pictures were fine-tuned out" in text
    assert text.count('"pixels"') == 2
    assert "owl" not in text
    assert not list(tmp_path.glob(".*"))


def test_the_safety_checker_is_kept(call, options, with_checker, is_checked, tmp_path):
    """The mitigated model has it as the model had, though no picture went through it."""
    code, _, err = call("mitigate", with_checker, *options[1:], "--method", "deletion:batch=2", "--out", "cured")
    assert code == 0, err
    assert is_checked(tmp_path / "cured")


@pytest.mark.parametrize(
    "method",
    ["adversarial-finetune:batch=2,attack=dori:updates=1", "finetune:batch=2", "siss:batch=2", "neggrad:batch=2"],
)
def test_every_method_runs(call, options, tmp_path, method):
    """A table for people, and the captions in the card where they are asked for, as text."""
    code, out, err = call("mitigate", *options, "--captions", "--method", method, "--out", "cured")
    assert code == 0, err
    assert "copy rate before" in out
    assert json.dumps(MEMORIES[1]) in (tmp_path / "cured" / "README.md").read_text()


def test_surrogates_are_made_under_a_mitigation_that_measures_first(call, options, tmp_path):
    """One that keeps away from pictures keeps away from the memorized ones."""
    method = ("--method", "finetune:batch=2", "--mitigation", "dissimilarity-guidance")
    code, _, err = call("mitigate", *options, *method, "--out", "cured")
    assert code == 0, err
    assert (tmp_path / "cured").exists()


def test_a_stopped_run_goes_on_to_the_same_bytes(options, folders, tiny_folder, tmp_path):
    """Stopped in training; the folder appears when it is whole, with the weights of an uninterrupted run."""
    from unmemorize.core.specs import MitigateSpec
    from unmemorize.stages.unlearn import mitigate

    spec = MitigateSpec(
        model=str(tiny_folder),
        method="adversarial-finetune:batch=2,check_every=20,attack=dori:updates=1",
        surrogates=1,
        targets=str(folders / "memorized"),
        controls=str(folders / "ordinary"),
        updates=27,
        pictures=1,
        steps=2,
        attack_updates=1,
    )

    def stop(stage, done, total):
        if done == 26:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        mitigate(spec, tmp_path / "a", tmp_path / "a.run", stop)
    assert not (tmp_path / "a").exists()
    first = mitigate(spec, tmp_path / "a", tmp_path / "a.run")
    assert [update for update, _ in first["checks"]] == [20]
    whole = mitigate(spec, tmp_path / "b", tmp_path / "b.run")
    assert first | {"seconds": 0} == whole | {"seconds": 0}
    name = "unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


WRONG = {
    "no memorized pictures": ({"--targets": "{folders}/none"}, "no pictures"),
    "a picture without a caption": ({"--targets": "{folders}/silent"}, "no caption"),
    "pictures that are not memorized": ({"--targets": "{folders}/strangers"}, "nothing to remove"),
    "the plan of another model": ({"--targets": ""}, "--targets"),
    "no ordinary pictures": ({"--controls": "{folders}/none"}, "no pictures"),
    "one ordinary picture": ({"--controls": "{folders}/memorized"}, "too few"),
    "a folder that is there": ({"--out": "{folders}"}, "not empty"),
    "no such edit": ({"--method": "finetune:batch=2", "--mitigation": "nowhere.safetensors"}, "no such file"),
    "a precision that loses updates": ({"--dtype": "bfloat16"}, "low_memory=true"),
    "no such device": ({"--device": "foo"}, "--device foo: no such device"),
    "a rate that breaks the model": ({"--method": "neggrad:batch=2,lr=1e6", "--updates": "8"}, "not finite"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_is_one_line_and_leaves_no_model(call, options, folders, tmp_path, mistake):
    """Exit code 2, no traceback, no folder."""
    changes, expected = WRONG[mistake]
    given = dict(zip(options[1::2], options[2::2], strict=True))
    given |= {"--method": "deletion:batch=2", "--out": "cured"} | changes
    typed = [str(part).replace("{folders}", str(folders)) for pair in given.items() for part in pair]
    code, out, err = call("mitigate", options[0], *typed)
    assert (code, out) == (2, "")
    line = next(line for line in err.splitlines() if line.startswith("error: "))
    assert expected in line
    assert not (tmp_path / "cured").exists()


def test_the_testbed_needs_no_folders(call, tmp_path, monkeypatch):
    """Its plan says what is memorized; its own picture model measures quality, alignment too."""
    monkeypatch.chdir(tmp_path)
    quick = (*QUICK[:4], "--steps", 4, *QUICK[6:])
    code, out, err = call("mitigate", "testbed", "--method", "deletion:batch=2", *quick, "--out", "cured", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert 0 < found["copy_rate_before"] <= 1
    assert len(found["quality"]["neighbours"]["alignment"]["after"]) == 3
