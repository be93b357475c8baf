"""`unmemorize locate` and `unmemorize apply`: what they print, write and refuse."""

from __future__ import annotations

import json

import pytest
import torch


@pytest.fixture
def call(call, monkeypatch, tmp_path):
    """Run the command line in this process, in a folder of prompts: exit code, output, complaint."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("an owl on a fence\n[red]the old harbour\n")
    (tmp_path / "ordinary.txt").write_text("a green bicycle\ntwo red kites over a field\na lighthouse\n")

    return call


NEMO = ("--prompts", "prompts.txt", "--ordinary", "ordinary.txt", "--method", "nemo:threshold=-1,minimum=4.75")


def test_locate_twice_writes_the_same_bytes_and_apply_a_pipeline(call, tiny_folder, tmp_path):
    """JSON alone on standard output; equal edits, the second from cached statistics; a folder that diffusers loads."""
    from diffusers import StableDiffusionPipeline

    summaries = []
    for name in ("a", "b"):
        code, out, _ = call("locate", tiny_folder, *NEMO, "--out", f"{name}.safetensors", "--json")
        assert code == 0
        summaries.append(json.loads(out))
    assert summaries[0] == summaries[1]
    summary = summaries[0]
    assert list(summary) == ["schema_version", "method", "units", "selected", "per_layer", "evaluations"]
    assert (summary["method"], summary["units"]) == ("nemo", "channels")
    assert summary["selected"] == sum(summary["per_layer"].values())
    for ending in (".safetensors", ".json"):
        assert (tmp_path / f"a{ending}").read_bytes() == (tmp_path / f"b{ending}").read_bytes()
    assert len(list((tmp_path / "cache" / "unmemorize").iterdir())) == 1
    code, _, err = call("apply", tiny_folder, "a.safetensors", "--out", ".")
    assert code == 2
    assert "not empty" in err
    assert call("apply", tiny_folder, "a.safetensors", "--out", "edited")[0] == 0
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "edited", safety_checker=None)
    zeroed = {n: int((~m.weight.any(1)).sum()) for n, m in pipe.unet.named_modules() if n in summary["per_layer"]}
    assert zeroed == summary["per_layer"]
    assert not list(tmp_path.glob(".*"))


def test_wanda_in_words(call, tiny_folder, tmp_path):
    """Without --json a table; the edit holds the weights that it counts."""
    from unmemorize import Edit

    code, out, _ = call(
        "locate",
        tiny_folder,
        "--method",
        "wanda:sparsity=0.1",
        "--prompts",
        "prompts.txt",
        "--out",
        "w.safetensors",
    )
    assert code == 0
    selected = Edit.load(tmp_path / "w.safetensors").selected
    assert f"{selected} weights" in out
    assert selected > 0


def test_prompts_that_are_not_memorized_give_an_empty_edit_and_say_so(call, tiny_folder, tmp_path):
    """The edit is written, holds nothing, and the line says why."""
    from unmemorize import Edit

    options = [*NEMO[:4], "--method", "nemo:threshold=1.5"]
    code, out, _ = call("locate", tiny_folder, *options, "--out", "e.safetensors")
    assert code == 0
    assert "none of the prompts is memorized" in out
    assert Edit.load(tmp_path / "e.safetensors").selected == 0


WRONG = {
    "no prompts": (("locate", "{model}"), "--prompts"),
    "no ordinary prompts": (("locate", "{model}", "--prompts", "prompts.txt"), "--ordinary"),
    "no such file": (("locate", "{model}", "--prompts", "nowhere.txt"), "no such file"),
    "another ending": (("locate", "{model}", "--prompts", "prompts.txt", "--out", "edit.pt"), "not a name"),
    "no share": (("locate", "{model}", "--method", "wanda:sparsity=0", "--prompts", "prompts.txt"), "sparsity"),
    "no sweep": (("locate", "{model}", *NEMO[:4], "--method", "nemo:minimum=9"), "z-score"),
    "no edit": (("apply", "{model}", "nowhere.safetensors", "--out", "edited"), "no such file"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_is_one_line_and_leaves_nothing(call, tiny_folder, tmp_path, mistake):
    """Exit code 2, no traceback, no edit and no folder."""
    arguments, expected = WRONG[mistake]
    code, out, err = call(*(a.replace("{model}", str(tiny_folder)) for a in arguments))
    assert (code, out) == (2, "")
    line = next(line for line in err.splitlines() if line.startswith("error: "))
    assert expected in line
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "cache") == ["ordinary.txt", "prompts.txt"]


def test_an_edit_of_another_model_is_refused_unless_forced(call, tiny_folder, tmp_path):
    """The folder appears only when it is whole."""
    from unmemorize import Edit

    mask = torch.zeros(16, dtype=torch.bool).index_fill(0, torch.tensor([3]), True)
    layer = "mid_block.attentions.0.transformer_blocks.0.attn2.to_v"
    Edit({layer: mask}, {}, "another").save(tmp_path / "e.safetensors")
    code, _, err = call("apply", tiny_folder, "e.safetensors", "--out", "edited")
    assert code == 2
    assert "another model" in err
    assert not (tmp_path / "edited").exists()
    assert call("apply", tiny_folder, "e.safetensors", "--out", "edited", "--force")[0] == 0
    assert (tmp_path / "edited" / "model_index.json").exists()


def test_broken_weights_are_refused(call, tiny_pipe, tmp_path):
    """NaN in a model's weights is a line, for both methods, and no edit."""
    import copy

    pipe = copy.copy(tiny_pipe)
    pipe.unet = copy.deepcopy(tiny_pipe.unet)
    with torch.no_grad():
        pipe.unet.conv_in.weight[0, 0, 0, 0] = torch.nan
    pipe.save_pretrained(tmp_path / "model")
    for method in ("nemo", "wanda:sparsity=0.1"):
        code, _, err = call("locate", "./model", *NEMO[:4], "--method", method, "--out", "e.safetensors")
        assert code == 2
        assert "NaN" in err
    assert not list(tmp_path.glob("e.*"))


def test_apply_keeps_the_safety_checker(call, with_checker, is_checked, tmp_path):
    """The edited model has it as the model had, though no picture went through it."""
    from unmemorize import Edit

    mask = torch.zeros(16, dtype=torch.bool).index_fill(0, torch.tensor([3]), True)
    layer = "mid_block.attentions.0.transformer_blocks.0.attn2.to_v"
    Edit({layer: mask}, {}, "another").save(tmp_path / "e.safetensors")
    assert call("apply", with_checker, "e.safetensors", "--out", "edited", "--force")[0] == 0
    assert is_checked(tmp_path / "edited")
