"""A folder whose configurations say what cannot be, or whose files are damaged, is refused in a line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from safetensors.torch import load_file, save_file

from unmemorize.core.errors import UnmemorizeError
from unmemorize.core.sample import Sampler, generate
from unmemorize.data.pictures import png
from unmemorize.models.load import load

IMPOSSIBLE = {
    "unet": {
        "sample_size": (0, -8, "8", None, 2**40),
        "block_out_channels": ([], "8", [0, 0], [8]),
        "norm_num_groups": (0, -1, "4", 3),
        "class_embed_type": ("timestep", "identity", 5),
        "num_class_embeds": (4,),
        "cross_attention_dim": (0, "16", 17),
        "layers_per_block": (-1, 2**31, "1"),
        "in_channels": (0, 9),
        "_class_name": ("Nothing", None, 3),
    },
    "vae": {
        "scaling_factor": ("0.18", None, 0, float("nan")),
        "latent_channels": (0, 3),
        "norm_num_groups": (0,),
        "block_out_channels": (["8"],),
    },
    "scheduler": {
        "prediction_type": ("unknown", None, 1),
        "timestep_spacing": ("unknown", None),
        "num_train_timesteps": (0, -1, "1000", 10**12),
        "beta_start": ("a", float("nan"), None),
        "beta_schedule": ("unknown",),
        "_class_name": ("Nothing", "AutoencoderKL"),
    },
    "text_encoder": {"vocab_size": (1, -5, 10**12), "num_hidden_layers": (10**9,), "hidden_size": (17, "16")},
}
CASES = [
    (part, name, value)
    for part, settings in IMPOSSIBLE.items()
    for name, values in settings.items()
    for value in values
]


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A folder of one's own to spoil."""
    return shutil.copytree(tiny_folder, tmp_path / "model")


def config(folder, part):
    return folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")


def use(folder):
    """The file of a picture that it makes."""
    model = load(str(folder), device="cpu")
    cond = model.encode(["an owl"])
    return png(generate(model, cond, seeds=[0], sampler=Sampler(2))[0])


@pytest.mark.parametrize(("part", "name", "value"), CASES, ids=lambda value: str(value)[:20])
def test_a_setting_that_cannot_be_is_a_line(part, name, value, folder, capfd):
    """Refused where it is loaded or where the picture is written; or it does no harm, and there is a picture."""
    file = config(folder, part)
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
    try:
        said = use(folder)[1:4].decode()
    except UnmemorizeError as error:
        said = str(error)
    assert said == "PNG" or len(said.splitlines()) == 1
    assert "".join(capfd.readouterr()) == ""


@pytest.mark.parametrize(
    "file", ["unet/config.json", "scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json"]
)
@pytest.mark.parametrize("content", [b"null", b"[]", b"", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}"])
def test_what_is_no_configuration_is_a_line(file, content, folder):
    """A list, nothing, a nest without end."""
    (folder / file).write_bytes(content)
    with pytest.raises(UnmemorizeError, match=f"its {file} is no configuration: download it again"):
        load(str(folder))


def test_a_scheduler_of_an_older_version_is_no_page_of_warnings(folder, tmp_path):
    """diffusers warns of it in forty lines, in a process of its own, where no test runner takes them away."""
    file = config(folder, "scheduler")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"steps_offset": 0, "clip_sample": True}))
    words = ["generate", str(folder), "an owl", "--pictures", "1", "--steps", "2", "--out", str(tmp_path / "made")]
    done = subprocess.run([sys.executable, "-m", "unmemorize", *words], capture_output=True, text=True)
    assert (done.returncode, done.stderr.splitlines()) == (0, [f"loading {folder} …", "generate: 1 of 1"])


def test_what_a_library_says_elsewhere_is_said_here(folder, capfd):
    """Shapes that do not fit are told, and not where to look; a tokenizer without its settings is named as that."""
    file = config(folder, "text_encoder")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"vocab_size": 3}))
    with pytest.raises(UnmemorizeError, match="its weights have other shapes than its configurations say"):
        load(str(folder))
    (folder / "tokenizer" / "tokenizer_config.json").unlink()
    with pytest.raises(UnmemorizeError, match=r"no tokenizer_config\.json in its tokenizer: download it again"):
        load(str(folder))
    assert "".join(capfd.readouterr()) == ""


@pytest.mark.parametrize("entry", [{"../unet": ["diffusers", "A"]}, {"unet": [1, 2]}, {"unet": ["diffusers"]}])
def test_an_index_names_folders_of_its_own(entry, folder):
    """A part is a folder in the pipeline's own, of a library and a class."""
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | entry))
    with pytest.raises(UnmemorizeError, match=r"its model_index\.json is none"):
        load(str(folder))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_weights_that_are_missing_are_a_line(part, folder, capfd):
    """One tensor of a file less: nothing is made up in its place."""
    (file,) = (folder / part).glob("*.safetensors")
    weights = load_file(file)
    name = next(name for name in weights if name.endswith("weight"))
    save_file({key: value for key, value in weights.items() if key != name}, file, {"format": "pt"})
    with pytest.raises(UnmemorizeError, match=r"lacks|missing") as refused:
        use(folder)
    assert len(str(refused.value).splitlines()) == 1
    assert "".join(capfd.readouterr()) == ""
