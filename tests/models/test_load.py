"""Getting a model: what is refused, how, and what is left alone."""

from __future__ import annotations

import copy
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file

from unmemorize.core.errors import NotApplicable, UserError
from unmemorize.core.methods import Subject
from unmemorize.core.sample import Sampler, generate
from unmemorize.localize.reference import activations
from unmemorize.localize.wanda import Wanda
from unmemorize.mitigate.edit import Edit
from unmemorize.models.load import load, place, wrap


@pytest.fixture
def spoilt(tiny_folder, tmp_path):
    """A copy of the pipeline's folder, to be spoilt."""
    return shutil.copytree(tiny_folder, tmp_path / "model")


def assert_refused(path, match):
    with pytest.raises(UserError, match=match) as error:
        load(str(path), device="cpu")
    assert "\n" not in str(error.value)


def test_a_saved_folder_loads_as_the_pipeline_it_was(tiny_folder, tiny_model):
    """A folder loads with its weights, name and size, and makes the same pictures."""
    model = load(str(tiny_folder), device="cpu")
    assert model.name == str(tiny_folder)
    assert model.image_size == (32, 32)
    assert model.fingerprint == tiny_model.fingerprint
    pictures = [
        generate(m, m.encode(["an owl on a fence"]), seeds=[5], sampler=Sampler(2)) for m in (model, tiny_model)
    ]
    assert torch.equal(*pictures)


def test_a_folder_s_safety_checker_is_saved_with_it(with_checker, is_checked, tmp_path):
    """Loading leaves it out; the saved folder holds it, its entry, and that it is required."""
    load(str(with_checker), device="cpu").save(tmp_path / "saved")
    assert is_checked(tmp_path / "saved")


def from_hub(folder, monkeypatch, downloaded):
    """A model as loaded by the hub id `owner/name`, whose whole pipeline `downloaded` gives."""
    pipe = DiffusionPipeline.from_pretrained(folder, safety_checker=None, requires_safety_checker=False)
    monkeypatch.setattr("unmemorize.models.load._pipeline", lambda source, dtype, config: pipe)
    monkeypatch.setattr(DiffusionPipeline, "download", downloaded)
    return load("owner/name", revision="v2", device="cpu")


def test_a_hub_model_s_safety_checker_is_downloaded_for_saving(with_checker, is_checked, tmp_path, monkeypatch):
    """The id and the revision that were loaded are asked for, once, when the model is saved."""
    asked = []

    def downloaded(name, revision):
        asked.append((name, revision))
        return str(with_checker)

    model = from_hub(with_checker, monkeypatch, downloaded)
    assert not asked
    model.save(tmp_path / "saved")
    assert asked == [("owner/name", "v2")]
    assert is_checked(tmp_path / "saved")


def test_a_hub_model_is_not_saved_without_its_safety_checker(with_checker, tmp_path, monkeypatch):
    """Where it cannot be had, saving is refused in one line."""
    shutil.rmtree(with_checker / "safety_checker")
    model = from_hub(with_checker, monkeypatch, lambda name, revision: str(with_checker))
    with pytest.raises(UserError, match="owner/name: its safety_checker is not in the cache"):
        model.save(tmp_path / "saved")


def test_a_revision_is_asked_of_the_hub(tiny_folder, monkeypatch):
    """Of the index that names the family, and of the weights."""
    asked, pipe = [], StableDiffusionPipeline.from_pretrained(tiny_folder)

    def index(name, revision):
        asked.append(revision)
        return {"_class_name": "StableDiffusionPipeline"}

    def weights(name, **how):
        asked.append(how.pop("revision"))
        return pipe

    monkeypatch.setattr("unmemorize.models.load._require_answer", lambda source: None)
    monkeypatch.setattr(DiffusionPipeline, "load_config", index)
    monkeypatch.setattr(StableDiffusionPipeline, "from_pretrained", weights)
    assert load("owner/name", revision="v2", device="cpu").revision == "v2"
    assert asked == ["v2", "v2"]


@pytest.mark.parametrize("offload", ["model", "group"])
def test_offloading_needs_a_device_to_offload_from(offload):
    """On a CPU everything is where it waits."""
    with pytest.raises(UserError, match=f"--offload {offload}: .* leave it out"):
        load("testbed", device="cpu", offload=offload)


@pytest.mark.parametrize("offload", ["model", "group"])
def test_an_offloaded_model_is_the_same_model(offload, tiny_folder, tiny_model):
    """With diffusers' hooks in place, the CPU standing in for a GPU: pictures, statistics of layers, an edit."""
    pipe = StableDiffusionPipeline.from_pretrained(tiny_folder)
    standing_in = SimpleNamespace(
        enable_model_cpu_offload=lambda device: pipe.enable_model_cpu_offload(device="cpu"),
        enable_group_offload=lambda device, **how: pipe.enable_group_offload(torch.device("cpu"), **how),
    )
    place(standing_in, torch.device("cuda"), offload)
    model = wrap(pipe, name="tiny")
    assert model.fingerprint == tiny_model.fingerprint
    results = []
    for one in (model, tiny_model):
        cond = one.encode(["an owl on a fence", "a boat"])
        pruned = Edit.of(Wanda(sparsity=0.2, seeds=2).find(Subject(one), cond), one.fingerprint)
        with pruned.applied(Subject(one)):
            pictures = generate(one, cond, seeds=[5, 6], sampler=Sampler(2))
        results.append([pictures, *activations(one, cond).values(), *pruned.weights.values()])
    for offloaded, whole in zip(*results, strict=True):
        assert torch.equal(offloaded, whole)


def test_the_shipped_models_have_steps_of_their_own(tiny_folder):
    """16 for the testbed, 50 for others, guidance 7.5 for both."""
    found = {name: load(name, device="cpu") for name in ("testbed", str(tiny_folder))}
    assert [model.steps for model in found.values()] == [16, 50]
    assert [model.guidance for model in found.values()] == [7.5, 7.5]


def test_a_folder_loads_in_the_precision_asked_for(tiny_folder):
    """On a CPU the weights are float32 unless another dtype is named."""
    assert load(str(tiny_folder), device="cpu").denoiser.dtype == torch.float32
    half = load(str(tiny_folder), device="cpu", dtype=torch.bfloat16)
    assert half.denoiser.dtype == half.pipe.text_encoder.dtype == torch.bfloat16


@pytest.mark.parametrize("path", ["nowhere", "./nowhere", "/no/where", "a/b/c", "~/x", "nul\0", " "])
def test_a_path_that_is_nowhere_is_named(path):
    """A missing folder is one line that names it and says what may be given."""
    assert_refused(path, "no such folder: name a pipeline folder, a hub id")


def test_a_file_is_refused(tiny_folder):
    """A file instead of a folder is one line."""
    assert_refused(tiny_folder / "model_index.json", "a file, not a folder")


@pytest.mark.parametrize("make", ["empty string", "empty folder"])
def test_a_folder_without_an_index_is_refused(tmp_path, monkeypatch, make):
    """A folder that is no pipeline, or no name at all, is one line."""
    monkeypatch.chdir(tmp_path)
    assert_refused("" if make == "empty string" else tmp_path, r"no model_index\.json: name a folder saved by")


def test_a_hub_id_without_network_is_refused():
    """A hub id that is not at hand says that the hub is switched off."""
    assert_refused("nobody/no-such-model", r"nobody/no-such-model: .*the hub is switched off")


def test_a_hub_that_cannot_be_reached_is_asked_once(monkeypatch, tmp_path):
    """Its libraries ask six times, half a minute in all."""
    asked, refuse = [], lambda seconds: asked.append(seconds)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
        "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}",
    )
    assert_refused("nobody/no-such-model", r"nobody/no-such-model: no such folder, and the hub cannot be reached")
    assert not asked


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[]", b"\xff\xfe"])
def test_a_broken_index_is_refused(spoilt, content):
    """A model_index.json that is not one is one line that names the folder."""
    (spoilt / "model_index.json").write_bytes(content)
    assert_refused(spoilt, "its model_index.json is none: download it again")


def test_an_index_that_names_unknown_classes_is_refused(spoilt):
    """An index with a class that does not exist, or of another library, is one line."""
    index = json.loads((spoilt / "model_index.json").read_text())
    (spoilt / "model_index.json").write_text(json.dumps(index | {"unet": ["diffusers", "NoSuchModel"]}))
    assert_refused(spoilt, "cannot be loaded")


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_folder_with_a_part_missing_is_refused(spoilt, part):
    """Without one of its models or its scheduler a pipeline does not load."""
    shutil.rmtree(spoilt / part)
    assert_refused(spoilt, f"no folder {part} in it: download it whole")


WEIGHTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}


@pytest.mark.parametrize("part", WEIGHTS)
def test_truncated_weights_are_refused(spoilt, part):
    """A cut-off weights file is one line that names it, wherever it was cut."""
    file = spoilt / part / f"{WEIGHTS[part]}.safetensors"
    whole = file.read_bytes()
    for size in (3, 2000, len(whole) - 1):
        file.write_bytes(whole[:size])
        assert_refused(spoilt, rf"{WEIGHTS[part]}\.safetensors: .*cut off.*: download it again")


@pytest.mark.parametrize("part", WEIGHTS)
def test_pickled_weights_are_refused(spoilt, part):
    """Weights that come only as a pickle are never unpickled."""
    file = spoilt / part / f"{WEIGHTS[part]}.safetensors"
    name = "pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin"
    torch.save(load_file(file), spoilt / part / name)
    file.unlink()
    assert_refused(spoilt, rf"its {part} comes as {name}, a pickle, which is never opened: .*save_pretrained")


def test_weights_of_another_shape_are_refused(spoilt):
    """A configuration that does not fit its weights is one line."""
    config = spoilt / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"cross_attention_dim": 8}))
    assert_refused(spoilt, "cannot be loaded")


def test_a_pipeline_of_another_family_has_no_adapter():
    """What is not a Stable Diffusion pipeline is *not applicable*, with its class's name."""

    class FluxLike(DiffusionPipeline):
        pass

    for other in (FluxLike(), object(), None):
        with pytest.raises(NotApplicable, match=f"{type(other).__name__} has no adapter"):
            wrap(other)


def test_a_guidance_distilled_unet_is_not_applicable(tiny_pipe):
    """A UNet that takes the guidance scale as an input has no unconditional branch to compare with."""
    pipe = copy.copy(tiny_pipe)
    pipe.unet = UNet2DConditionModel.from_config(tiny_pipe.unet.config, time_cond_proj_dim=8)
    with pytest.raises(NotApplicable, match="guidance-distilled"):
        wrap(pipe)


def test_wrapping_changes_nothing_on_the_pipeline(tiny_pipe):
    """The pipeline keeps its components, their flags and its settings; nothing is copied or moved."""
    parts = dict(tiny_pipe.components)
    modes = [p.training for p in parts.values() if isinstance(p, torch.nn.Module)]
    flags = [p.requires_grad for p in tiny_pipe.unet.parameters()]
    attributes = set(vars(tiny_pipe))
    config = dict(tiny_pipe.config)
    model = wrap(tiny_pipe)
    assert model.pipe is tiny_pipe
    assert model.denoiser is tiny_pipe.unet
    assert all(tiny_pipe.components[name] is part for name, part in parts.items())
    assert [p.training for p in parts.values() if isinstance(p, torch.nn.Module)] == modes
    assert [p.requires_grad for p in tiny_pipe.unet.parameters()] == flags
    assert set(vars(tiny_pipe)) == attributes
    assert dict(tiny_pipe.config) == config


def test_the_fingerprint_follows_the_weights(tiny_model):
    """One changed number of denoiser, text encoder or VAE is another fingerprint; changed back, the old one."""
    before = tiny_model.fingerprint
    for module in (tiny_model.denoiser, tiny_model.pipe.text_encoder, tiny_model.pipe.vae):
        parameter = next(module.parameters())
        old = parameter.detach().flatten()[0].clone()
        with torch.no_grad():
            parameter.view(-1)[0] += 1
        assert tiny_model.fingerprint != before
        with torch.no_grad():
            parameter.view(-1)[0] = old
    assert tiny_model.fingerprint == before


def test_the_fingerprint_follows_the_noise_schedule(tiny_pipe, tiny_model):
    """Another scheduler or another setting of it is another fingerprint; where its defaults came from is not."""
    other = copy.copy(tiny_pipe)
    config = {k: v for k, v in tiny_pipe.scheduler.config.items() if not k.startswith("_")}
    found = []
    for scheduler in (
        DDIMScheduler(**config),
        DDIMScheduler(**config | {"beta_end": 0.02}),
        PNDMScheduler.from_config(config),
    ):
        other.scheduler = scheduler
        found.append(wrap(other).fingerprint)
    assert found[0] == tiny_model.fingerprint
    assert len(set(found)) == 3
