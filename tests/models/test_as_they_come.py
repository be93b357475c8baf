"""Models as people have them: variants, incomplete folders, single files, LoRAs, textual inversions."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
from diffusers import AutoencoderTiny, FirstBlockCacheConfig, UNet2DConditionModel
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from pipelines import tiny
from unmemorize.core.errors import NotApplicable, UserError
from unmemorize.core.methods import Subject
from unmemorize.core.sample import Sampler, generate, generators
from unmemorize.detect.noise import NoiseGap
from unmemorize.explain.gradient import Gradient
from unmemorize.localize.reference import check_finite
from unmemorize.mitigate.edit import Edit
from unmemorize.models.configs import CONFIGS, write_configuration
from unmemorize.models.load import load, wrap
from unmemorize.models.source import examine
from unmemorize.unlearn.finetune import Finetune, finetune

PROMPT = "an owl on a fence"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Tiny pipelines' folders, and their fp16 variants."""
    folder = tmp_path_factory.mktemp("saved")
    for family in ("sd3", "flux", "sana"):
        tiny(family).save_pretrained(folder / family)
    for family in ("sd", "sdxl"):
        tiny(family).save_pretrained(folder / family)
        tiny(family).to(torch.float16).save_pretrained(folder / f"{family}-fp16", variant="fp16")
    return folder


@pytest.fixture
def spoilt(saved, tmp_path):
    """Copies a folder, to be spoilt."""
    return lambda name: shutil.copytree(saved / name, tmp_path / name)


def refused(path, match, kind=UserError, **how):
    with pytest.raises(kind, match=match) as error:
        load(str(path), device="cpu", **how)
    assert "\n" not in str(error.value)


def pictures(model, prompt=PROMPT):
    return generate(model, model.encode([prompt]), seeds=[5], sampler=Sampler(2, 3.0))


# folders


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_a_folder_of_half_precision_files_loads(saved, family):
    """Where only fp16 files are there they are read, asked for or not, in the precision asked for."""
    found = load(str(saved / f"{family}-fp16"), device="cpu", dtype="float16")
    asked = load(str(saved / f"{family}-fp16"), device="cpu", variant="fp16")
    assert found.denoiser.dtype == torch.float16
    assert asked.denoiser.dtype == torch.float32
    assert torch.equal(found.denoiser.conv_in.weight.float(), asked.denoiser.conv_in.weight)
    assert wrap(tiny(family).to(torch.float16)).fingerprint == found.fingerprint


def test_a_folder_in_mixed_precision_loads(saved, spoilt):
    """One component in fp16 beside others as they are."""
    folder = spoilt("sd")
    shutil.rmtree(folder / "vae")
    shutil.copytree(saved / "sd-fp16" / "vae", folder / "vae")
    assert examine(str(folder)).variant == "fp16"
    assert load(str(folder), device="cpu").denoiser.dtype == torch.float32


def test_a_variant_that_is_not_there_is_refused(saved, spoilt):
    """The variants that are there are named."""
    refused(saved / "sd-fp16", "no variant bf16 in it: there is fp16", variant="bf16")
    refused(saved / "sd", r"no variant fp16 in it$", variant="fp16")
    folder = spoilt("sd-fp16")
    file = folder / "vae" / "diffusion_pytorch_model.fp16.safetensors"
    file.rename(file.with_name("diffusion_pytorch_model.bf16.safetensors"))
    refused(folder, "components come in different variants")


def test_an_incomplete_download_is_named(spoilt):
    """A component without weights, a missing part of sharded ones, a tokenizer without words."""
    folder = spoilt("sd")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    shard = weights.rename(weights.with_name("diffusion_pytorch_model-00001-of-00002.safetensors"))
    index = {"weight_map": {"a": shard.name, "b": "diffusion_pytorch_model-00002-of-00002.safetensors"}}
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, "1 of 2 files missing in its unet: download it again")
    shard.unlink()
    refused(folder, "no weights in its unet: download it again")
    for file in (folder / "tokenizer").iterdir():
        file.unlink()
    refused(folder, "no words in its tokenizer: download it again")


def test_weights_without_a_place_are_refused(spoilt):
    """Such as the scales of quantized ones: left out, the others mean something else."""
    folder = spoilt("sd")
    (file,) = (folder / "unet").glob("*.safetensors")
    save_file(load_file(file) | {"conv_in.weight_scale": torch.ones(1), "conv_out.weight_scale": torch.ones(1)}, file)
    refused(folder, r"2 weights of its file, such as conv_in\.weight_scale, have no place in its UNet2DConditionModel")


def test_scales_of_a_text_encoder_or_a_single_file_are_refused(saved, spoilt, tmp_path):
    """No loader reads them; a folder whose configuration says what they are for is left to its loader."""
    folder = spoilt("sd")
    (file,) = (folder / "text_encoder").glob("*.safetensors")
    tensors = load_file(file)
    layer = next(name for name in sorted(tensors) if name.endswith("fc1.weight"))
    save_file(tensors | {f"{layer}_scale": torch.ones(1), f"{layer}.absmax": torch.ones(1)}, file)
    refused(
        folder, rf"2 of the weights of its text_encoder, such as {re.escape(layer)}.*, say how others were quantized"
    )
    config = folder / "text_encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": {}}))
    assert examine(str(folder)).kind == "folder"
    whole = {"cond_stage_model.a.weight": torch.ones(1), "cond_stage_model.a.scale_weight": torch.ones(1)}
    save_file(whole, tmp_path / "x.safetensors")
    refused(tmp_path / "x.safetensors", r"1 of its weights, such as cond_stage_model\.a\.scale_weight, say how others")


def test_a_family_without_adapter_is_named_before_anything_is_read(tmp_path):
    """The index alone is read: no weights, and torch is not imported."""
    index = {"_class_name": "KandinskyV22Pipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    refused(tmp_path, "KandinskyV22Pipeline has no adapter; those that have: StableDiffusionPipeline", NotApplicable)
    script = (
        "import sys; from unmemorize.models.load import load\n"
        "try: load(sys.argv[1])\n"
        "except Exception as error: print(type(error).__name__, 'torch' in sys.modules, 'diffusers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["NotApplicable", "False", "False"]


def test_code_of_its_own_is_never_run(spoilt):
    """A pipeline class that comes as code in the folder has no adapter."""
    folder = spoilt("sd")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": ["my_pipeline", "MyPipeline"]}))
    (folder / "my_pipeline.py").write_text("raise SystemExit('run')")
    refused(folder, "has no adapter", NotApplicable)


@pytest.mark.parametrize(
    ("file", "match"),
    [
        ("adapter_config.json", "it holds a LoRA: name the model .*MODEL --lora "),
        ("pytorch_lora_weights.safetensors", "it holds a LoRA: name the model .*MODEL --lora "),
        ("config.json", "it is one component: name the folder of the whole pipeline"),
        ("dream.safetensors", r"name the file in it, dream\.safetensors"),
    ],
)
def test_a_folder_that_is_no_pipeline_says_what_it_is(tmp_path, file, match):
    """What the folder holds decides what is to be named."""
    (tmp_path / file).write_bytes(b"{}")
    refused(tmp_path, match)


def test_what_a_folder_has_none_of_is_passed_on(tmp_path):
    """A pipeline saved without one of its text encoders loads without it."""
    pipe = tiny("sdxl", first=False)
    pipe.save_pretrained(tmp_path / "model")
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    assert index["text_encoder"] == [None, None]
    model = load(str(tmp_path / "model"), device="cpu")
    assert model.pipe.text_encoder is None
    assert model.fingerprint == wrap(pipe).fingerprint


@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_what_is_published_keeps_all_that_came_with_it(spoilt, tmp_path, family):
    """Every component but the denoiser is what it was, to the byte, with notes, licence and safety checker.

    No other weights go along: they would be those of the denoiser as it was. No file names a folder of this machine.
    """
    folder = spoilt(family)
    part = "unet" if family == "sd" else "transformer"
    for file in ("LICENSE.md", "README.md", "example.png", "feature_extractor/preprocessor_config.json"):
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text("{}")
    (folder / "vae" / "notes.txt").write_text("of the VAE")
    (folder / "everything.safetensors").write_bytes(b"\0" * 64)
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"feature_extractor": ["transformers", "CLIPImageProcessor"]}
    if family == "sd":
        shutil.copytree(folder / "text_encoder", folder / "safety_checker")
        index |= {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
        index |= {"requires_safety_checker": True}
    (folder / "model_index.json").write_text(json.dumps(index))
    model = load(str(folder), device="cpu", dtype="bfloat16")
    with torch.no_grad():
        next(model.denoiser.parameters()).add_(1)
    out = tmp_path / "out"
    out.mkdir()
    model.save(out)
    files = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    carried = {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()}
    assert files - carried == {"everything.safetensors"}
    for name in files & carried:
        if not name.startswith(f"{part}/") and name != "model_index.json":
            assert (out / name).read_bytes() == (folder / name).read_bytes(), name
    assert json.loads((out / "model_index.json").read_text()) == index
    again = load(str(out), device="cpu", dtype="bfloat16")
    assert again.fingerprint == model.fingerprint != load(str(folder), device="cpu", dtype="bfloat16").fingerprint
    for file in [*out.glob("*.json"), *out.glob("*/*.json")]:
        assert str(folder) not in file.read_text(), file


def test_a_pipeline_in_memory_is_saved_as_it_is(spoilt, tmp_path):
    """Its own components are written, whatever the folder has that it is said to come from; the licence goes along."""
    folder = spoilt("sdxl")
    (folder / "model.safetensors").write_bytes(b"\0" * 64)
    (folder / "LICENSE.md").write_text("as it was")
    pipe = tiny("sdxl", seed=1)
    wrap(pipe, source=folder).save(tmp_path / "out")
    assert (tmp_path / "out" / "LICENSE.md").read_text() == "as it was"
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert load(str(tmp_path / "out"), device="cpu").fingerprint == wrap(pipe).fingerprint


# single files


@pytest.mark.parametrize(
    ("name", "tensors", "match"),
    [
        (
            "x.safetensors",
            {"lora_unet_mid_block.lora_up.weight": (4, 4)},
            r"a LoRA: name the model .*MODEL --lora .*x\.safetensors`",
        ),
        ("x.safetensors", {"emb_params": (2, 768)}, r"a textual inversion: .*MODEL --embedding .*x\.safetensors`"),
        ("x.safetensors", {"a": (4, 4), "b": (4, 4, 1, 1)}, "no checkpoint of a family that is known"),
        (
            "x.safetensors",
            {"model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (4, 768)},
            "a denoiser alone, without text encoder",
        ),
        ("x.ckpt", {}, "a pickle, which is never opened"),
        ("x.gguf", {}, "a GGUF file, whose weights are quantized: name the folder of the whole pipeline"),
    ],
)
def test_a_file_says_what_it_is(tmp_path, name, tensors, match):
    """A file that is no whole checkpoint is one line with the remedy."""
    save_file({key: torch.ones(shape) for key, shape in tensors.items()}, tmp_path / name)
    refused(tmp_path / name, match)


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"\x08" + b"\0" * 7 + b"[1, 2]  ", b"\x80\x04\x95"])
def test_a_file_that_is_no_safetensors_is_refused(tmp_path, content):
    """Whatever lies in a file of that name."""
    (tmp_path / "x.safetensors").write_bytes(content)
    refused(tmp_path / "x.safetensors", "no safetensors file, or cut off")


def test_a_file_that_is_not_there_is_no_hub_id():
    """A relative path of one slash that names a file is not looked for on the hub."""
    refused("models/x.safetensors", "no such file")


def in_one_file(pipe, file):
    """Write a pipeline as the single file that trainers write: the names of the original code."""
    tensors = {f"model.diffusion_model.{_unet_name(k)}": v for k, v in pipe.unet.state_dict().items()}
    for name, value in pipe.vae.state_dict().items():
        renamed = _vae_name(name, levels=4)
        if re.search(r"attn_1\.(q|k|v|proj_out)\.weight", renamed):
            value = value[:, :, None, None]
        tensors[f"first_stage_model.{renamed}"] = value
    for name, value in pipe.text_encoder.state_dict().items():
        tensors[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = value
    save_file({name: value.contiguous() for name, value in tensors.items()}, file)


RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
WHOLE = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def _unet_name(name):
    """A tensor's name in the original code, of a UNet with one layer a block and attention at its first level."""
    for own, other in WHOLE.items():
        if name.startswith(own):
            return name.replace(own, other)
    where, rest = re.match(r"((?:down|up)_blocks\.\d+|mid_block)\.(.*)", name).groups()
    kind, number, rest = re.match(r"(\w+?)\.(\d+)\.(.*)", rest).groups()
    number = int(number)
    if kind == "resnets":
        first, tail = rest.split(".", 1)
        rest = f"{RESNET[first]}.{tail}"
    if where == "mid_block":
        return f"middle_block.{1 if kind == 'attentions' else 2 * number}.{rest}"
    block = int(where.split(".")[1])
    if where.startswith("down"):
        at = 1 + 2 * block + number if kind != "downsamplers" else 2 * (block + 1)
        rest = rest.replace("conv.", "op.") if kind == "downsamplers" else rest
        return f"input_blocks.{at}.{int(kind == 'attentions')}.{rest}"
    at = 2 * block + (number if kind != "upsamplers" else 1)
    return f"output_blocks.{at}.{int(kind != 'resnets')}.{rest}"


def _vae_name(name, levels):
    for pattern, other in [
        (r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2"),
        (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
        (r"mid_block\.resnets\.0", "mid.block_1"),
        (r"mid_block\.resnets\.1", "mid.block_2"),
        (r"mid_block\.attentions\.0", "mid.attn_1"),
        (r"group_norm", "norm"),
        (r"to_(q|k|v)\b", r"\1"),
        (r"to_out\.0", "proj_out"),
        (r"conv_norm_out", "norm_out"),
        (r"conv_shortcut", "nin_shortcut"),
    ]:
        name = re.sub(pattern, other, name)
    name = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{levels - 1 - int(m[1])}.block.{m[2]}", name)
    return re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", name)


@pytest.fixture
def one_file(tmp_path):
    """A tiny Stable Diffusion 1 as a single file, beside the folder that it was made of."""
    pipe = tiny(
        "sd",
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    pipe.save_pretrained(tmp_path / "folder")
    in_one_file(pipe, tmp_path / "dream.safetensors")
    return tmp_path / "dream.safetensors", tmp_path / "folder"


def test_a_single_file_loads_as_the_pipeline_it_was_made_of(one_file, tmp_path):
    """With a folder of its family for the configuration, offline; saved, it is a pipeline's folder."""
    file, folder = one_file
    assert examine(str(file)).family == "StableDiffusionPipeline"
    model = load(str(file), device="cpu", config=str(folder))
    expected = load(str(folder), device="cpu")
    assert model.fingerprint == expected.fingerprint
    assert torch.allclose(pictures(model), pictures(expected), atol=1e-4)
    model.save(tmp_path / "saved")
    assert load(str(tmp_path / "saved"), device="cpu").fingerprint == expected.fingerprint


def test_a_configuration_of_another_family_is_refused(one_file, saved):
    """It names both families; a folder that is none is refused, too."""
    file, _ = one_file
    refused(
        file, "a folder of StableDiffusionXLPipeline, but .* is a StableDiffusionPipeline", config=str(saved / "sdxl")
    )
    refused(file, r"no model_index\.json", config=str(saved / "sd" / "unet"))


def test_what_a_file_does_not_say_has_to_be_given(one_file):
    """Other widths than Stable Diffusion 1's are Stable Diffusion 2's, of which there are two kinds."""
    file, _ = one_file
    refused(file, r"a Stable Diffusion 2, which may predict ε or v: name a folder of its family .*\(--config\)")


PARAMETERS = {
    "StableDiffusionPipeline": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "StableDiffusionXLPipeline": {
        "unet": 2_567_463_684,
        "vae": 83_653_863,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
    },
}


@pytest.mark.parametrize("family", CONFIGS)
def test_configurations_build_networks_of_the_published_sizes(family, tmp_path):
    """Every network has as many parameters as the published one, and CLIP's words have CLIP's numbers."""
    write_configuration(family, tmp_path)
    found = {}
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(tmp_path / "unet"))
        found["unet"] = unet.num_parameters()
        own = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
        for part in PARAMETERS[family].keys() & own:
            found[part] = own[part](CLIPTextConfig.from_pretrained(tmp_path / part)).num_parameters()
    assert found == {part: count for part, count in PARAMETERS[family].items() if part != "vae"}
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer.model_max_length == 77


# LoRAs


def write_lora(family, file, *, text=False, strength=0.3, seed=0):
    """A random LoRA of a family as diffusers' training scripts write it."""
    pipe = tiny(family)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    denoiser = "unet" if hasattr(pipe, "unet") else "transformer"
    parts = {denoiser: getattr(pipe, denoiser)} | ({"text_encoder": pipe.text_encoder} if text else {})
    layers = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, part in parts.items():
            part.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=targets if name == denoiser else ["q_proj"]))
            for key, value in part.state_dict().items():
                if "lora_" in key:
                    layers[f"{name}.{key.replace('.default', '')}"] = torch.randn_like(value) * strength
    save_file(layers, file)
    return file


def loaded_lora(family, file, scale=1.0):
    """The pipeline with the LoRA put on by diffusers itself."""
    pipe = tiny(family)
    pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name="own")
    pipe.set_adapters("own", scale)
    return pipe


@pytest.mark.parametrize(
    ("family", "scale", "text"),
    [
        ("sd", 1.0, False),
        ("sd", 0.5, True),
        ("sdxl", 0.5, False),
        ("sdxl", 1.0, True),
        ("sd3", 0.5, False),
        ("flux", 0.5, False),
        ("sana", 1.0, False),
    ],
)
def test_a_lora_is_merged_and_saved(saved, tmp_path, family, scale, text):
    """Predictions are those of the pipeline with the LoRA on, at its scale, also after saving and loading."""
    file = write_lora(family, tmp_path / "style.safetensors", text=text)
    given = str(file) if scale == 1 else f"{file}:{scale}"
    how = {"device": "cpu", "dtype": "float64", "size": (64, 64)}
    base, model = (load(str(saved / family), lora=lora, **how) for lora in ([], [given]))
    expected = predicted(wrap(loaded_lora(family, file, scale).to(torch.float64), size=(64, 64)))
    assert torch.allclose(predicted(model), expected, atol=1e-6)
    assert not torch.allclose(predicted(base), expected, atol=1e-2)
    assert given in model.name
    model.save(tmp_path / "out")
    again = load(str(tmp_path / "out"), **how)
    assert again.fingerprint == model.fingerprint != base.fingerprint


def predicted(model):
    x = model.noise(generators([5]))
    with torch.no_grad():
        return model.predict(x, model.schedule(4).timesteps[1], model.encode([PROMPT])).output


def test_several_loras_are_merged_one_after_the_other(saved, tmp_path):
    """Each is on top of what is there."""
    files = [write_lora("sd", tmp_path / f"{i}.safetensors", seed=i) for i in range(2)]
    one, both = (load(str(saved / "sd"), device="cpu", lora=[str(f) for f in files[:n]]) for n in (1, 2))
    change = both.denoiser.mid_block.attentions[0].transformer_blocks[0].attn2.to_v.weight
    assert not torch.equal(change, one.denoiser.mid_block.attentions[0].transformer_blocks[0].attn2.to_v.weight)


def test_a_lora_that_does_nothing_is_refused(saved, tmp_path):
    """One for another family, one of zeros, one at scale zero, and files that are none."""
    other = write_lora("sdxl", tmp_path / "other.safetensors")
    zeros = write_lora("sd", tmp_path / "zeros.safetensors", strength=0.0)
    good = write_lora("sd", tmp_path / "good.safetensors")
    refused(saved / "sd", r"other\.safetensors: .*(not in this model|for this model)", lora=[str(other)])
    refused(saved / "sd", r"zeros\.safetensors: it changes no weight", lora=[str(zeros)])
    refused(saved / "sd", r"good\.safetensors: it changes no weight .* at scale 0", lora=[f"{good}:0"])
    refused(saved / "sd", "no such file: name a LoRA's .safetensors file", lora=["nowhere.safetensors:0.5"])
    broken = write_lora("sd", tmp_path / "broken.safetensors", strength=float("nan"))
    refused(saved / "sd", r"broken\.safetensors: some of its weights are no numbers", lora=[str(broken)])
    refused(saved / "sd", "no LoRA: name a file", lora=[str(saved / "sd" / "unet/diffusion_pytorch_model.safetensors")])
    (tmp_path / "x.bin").write_bytes(b"\x80\x04")
    refused(saved / "sd", "a pickle, which is never opened", lora=[str(tmp_path / "x.bin")])


def test_layers_under_a_loaded_lora_are_not_left_out():
    """A pipeline with a LoRA on says how to merge it instead of naming only the layers without."""
    pipe = tiny("sd")
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["attn2.to_k"]))
    model = wrap(pipe)
    for layers in (model.text_projections, model.feed_forwards):
        with pytest.raises(NotApplicable, match=r"fuse_lora\(\); pipe\.unload_lora_weights\(\)"):
            layers()


def test_layers_that_take_no_hooks_are_refused():
    """Fused projections and compiled networks would ignore what methods do to their layers."""
    fused = wrap(tiny("sd"))
    fused.pipe.unet.fuse_qkv_projections()
    with pytest.raises(NotApplicable, match="unfuse_qkv_projections"):
        fused.text_projections()
    compiled = wrap(tiny("sd"))
    compiled.denoiser.compile()
    with pytest.raises(NotApplicable, match="compiled"):
        compiled.feed_forwards()


@pytest.mark.parametrize("kind", ["int8", "float8_e4m3fn", "meta"])
def test_layers_of_other_weights_are_not_looked_into(kind):
    """Quantized weights, and those that are elsewhere, are said to be so before a method fails on them."""
    model = wrap(tiny("sd"))
    layer = next(iter(model.text_projections().values()))
    weight = layer.weight.detach().to("meta") if kind == "meta" else layer.weight.detach().to(getattr(torch, kind))
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    with pytest.raises(NotApplicable, match="quantized or offloaded"):
        model.text_projections()
    if kind == "meta":
        with pytest.raises(NotApplicable, match="offloaded"):
            _ = model.fingerprint


def test_weights_in_a_wrapper_have_a_fingerprint():
    """Of tensors that torchao quantizes what they are made of is hashed: not run here, with a tensor in their place."""

    class Quantized(torch.Tensor):
        def __tensor_flatten__(self):
            return ["numbers", "scale"], None

    model = wrap(tiny("sd"))
    plain = model.fingerprint
    weight = model.denoiser.conv_in.weight
    stands_in = weight.detach().clone().as_subclass(Quantized)
    stands_in.numbers, stands_in.scale = weight.detach().to(torch.int8), torch.ones(1)
    model.denoiser.conv_in.weight = torch.nn.Parameter(stands_in, requires_grad=False)
    model.denoiser.state_dict = lambda: {"conv_in.weight": stands_in}
    first = model.fingerprint
    stands_in.scale = torch.ones(1) * 2
    assert len({plain, first, model.fingerprint}) == 3


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn"])
def test_quantized_weights_are_neither_trained_nor_searched(dtype, tmp_path):
    """One line each: every parameter of them would be a traceback."""
    model = wrap(tiny("sd"))
    weight = model.denoiser.conv_in.weight.detach().to(getattr(torch, dtype))
    model.denoiser.conv_in.weight = torch.nn.Parameter(weight, requires_grad=False)
    with pytest.raises(NotApplicable, match="quantized"):
        check_finite(model.denoiser)
    with pytest.raises(NotApplicable, match="quantized weights are not trained"):
        finetune(model, None, Finetune(), tmp_path)


def test_no_gradient_passes_through_layerwise_casting():
    """Predictions do: torch would end in a message about types where a gradient to the text is asked for."""
    pipe = tiny("sd")
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    subject = Subject(wrap(pipe), Sampler(2))
    assert NoiseGap().score(subject, subject.model.encode(["an owl"]), seeds=[0]).by_seed.isfinite().all()
    with pytest.raises(NotApplicable, match="kept in float8"):
        Gradient().explain(subject, "an owl", seeds=[0])


def test_fused_projections_are_not_trained(tmp_path):
    """They would learn, and be thrown away where they are taken apart to save the model."""
    model = wrap(tiny("sd"))
    model.pipe.unet.fuse_qkv_projections()
    with pytest.raises(NotApplicable, match="unfuse_qkv_projections"):
        finetune(model, None, Finetune(), tmp_path)


def test_a_model_with_a_lora_on_is_neither_saved_nor_given_another(tmp_path):
    """What would be written could not be loaded, and training LoRA would take the user's away: merge it first."""
    pipe = tiny("sd")
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["attn2.to_k"]))
    model = wrap(pipe)
    with pytest.raises(NotApplicable, match=r"fuse_lora\(\)"):
        model.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(NotApplicable, match=r"fuse_lora\(\)"):
        finetune(model, None, Finetune(lora=2), tmp_path / "checkpoints")
    assert any("lora_A" in name for name, _ in pipe.unet.named_modules())


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "meta"])
def test_weights_that_cannot_be_changed_are_neither_edited_nor_lost(kind, tmp_path):
    """An edit of float8 weights, and a model written while its weights are elsewhere."""
    model = wrap(tiny("sd"))
    name, layer = next(iter(model.text_projections().items()))
    weight = layer.weight.detach()
    elsewhere = weight.to("meta") if kind == "meta" else weight.to(getattr(torch, kind))
    layer.weight = torch.nn.Parameter(elsewhere, requires_grad=False)
    edit = Edit({name: torch.ones(layer.out_features, dtype=torch.bool)}, {}, "", ())
    with pytest.raises(NotApplicable, match="quantized or offloaded"), edit.applied(Subject(model)):
        pass
    if kind == "meta":
        with pytest.raises(NotApplicable, match="offloaded, and cannot be written"):
            model.save(tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_a_unet_without_a_size_asks_for_one():
    """Its family has none that it could be given."""
    pipe = tiny("sd")
    pipe.unet.register_to_config(sample_size=None)
    with pytest.raises(UserError, match=r"no sample_size: say size=\(height, width\)"):
        wrap(pipe)
    assert wrap(pipe, size=(64, 96)).image_size == (64, 96)


@pytest.mark.parametrize(("family", "component"), [("sd", "vae"), ("sd3", "text_encoder_2"), ("flux", "tokenizer_2")])
def test_a_pipeline_without_what_it_needs_is_refused(family, component):
    """Where the family does not come without it."""
    pipe = tiny(family)
    setattr(pipe, component, None)
    with pytest.raises(NotApplicable, match=f"has no {component}"):
        wrap(pipe)


def test_stable_diffusion_3_without_t5_loads(tmp_path):
    """Its folder says that there is none."""
    pipe = tiny("sd3", t5=False)
    pipe.save_pretrained(tmp_path / "model")
    assert load(str(tmp_path / "model"), device="cpu").fingerprint == wrap(pipe).fingerprint


def test_a_small_vae_without_a_distribution_inverts():
    """Its latents are what it encodes to."""
    pipe = tiny("sd")
    channels = (8, 8, 8, 8)
    pipe.vae = AutoencoderTiny(encoder_block_out_channels=channels, decoder_block_out_channels=channels).eval()
    model = wrap(pipe)
    with torch.no_grad():
        assert model.invert(torch.rand(2, 3, 64, 64)).shape == (2, 4, 8, 8)


def test_a_cache_is_refused():
    """Predictions would depend on those before them."""
    pipe = tiny("flux")
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(NotApplicable, match=r"disable_cache\(\)"):
        wrap(pipe)


def test_a_compiled_unet_is_looked_through():
    """The network inside is studied: same names, same fingerprint, hooks that count."""
    pipe = tiny("sd")
    before = wrap(pipe)
    pipe.unet = torch.compile(pipe.unet)
    model = wrap(pipe)
    assert model.fingerprint == before.fingerprint
    assert model.text_projections().keys() == before.text_projections().keys()


# textual inversions


@pytest.mark.parametrize("vectors", [1, 3])
def test_a_textual_inversion_is_read_as_its_pipeline_reads_it(saved, tmp_path, vectors):
    """Embeddings, ids, mask and spans are of as many tokens as the word has vectors; saved, the word is still there."""
    file = tmp_path / "learned.safetensors"
    save_file({"<owl>": torch.randn(vectors, 16, generator=torch.Generator().manual_seed(0))}, file)
    model = load(str(saved / "sd"), device="cpu", embedding=[str(file)])
    prompt = "a lighthouse and <owl> on a fence"
    cond, plain = model.encode([prompt]), model.encode(["a lighthouse and  on a fence"])
    assert cond.mask.sum() == plain.mask.sum() + vectors
    spans = model.spans(prompt)
    assert len(spans) == cond.embeds.shape[1]
    assert [prompt[a:b] for a, b in spans].count("<owl>") == vectors
    at = [prompt[a:b] for a, b in spans].index("fence")
    tokens = model.pipe.tokenizer.convert_ids_to_tokens(cond.ids[0])
    assert tokens[at] == "fence</w>"
    model.save(tmp_path / "out")
    again = load(str(tmp_path / "out"), device="cpu")
    assert torch.equal(again.encode([prompt]).embeds, cond.embeds)


def test_a_textual_inversion_of_two_encoders(saved, tmp_path):
    """SDXL's come with a tensor an encoder, and are called as their file."""
    file = tmp_path / "<owl>.safetensors"
    save_file({"clip_g": torch.randn(2, 32), "clip_l": torch.randn(2, 16)}, file)
    model = load(str(saved / "sdxl"), device="cpu", embedding=str(file))
    assert [prompt for prompt in model.spans("<owl>") if prompt == (0, 5)] == [(0, 5), (0, 5)]
    assert not torch.equal(model.encode(["<owl>"]).embeds, model.encode([""]).embeds)


def test_a_textual_inversion_for_another_model_is_refused(saved, tmp_path):
    """Vectors of another width, and files that are none."""
    save_file({"<owl>": torch.randn(1, 99)}, tmp_path / "wide.safetensors")
    refused(
        saved / "sd",
        r"wide\.safetensors: no textual inversion for this model",
        embedding=[str(tmp_path / "wide.safetensors")],
    )
    width = tiny("sd").text_encoder.config.hidden_size
    save_file({"<owl>": torch.full((1, width), float("nan"))}, tmp_path / "broken.safetensors")
    refused(saved / "sd", "vectors are no numbers", embedding=[str(tmp_path / "broken.safetensors")])
    weights = saved / "sd" / "unet" / "diffusion_pytorch_model.safetensors"
    refused(saved / "sd", "no textual inversion: name a file", embedding=[str(weights)])
