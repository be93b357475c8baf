"""A tiny random pipeline, closed-form models, and a quiet, offline, single-threaded process."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=40, database=None)
settings.load_profile("repeatable")


def pytest_addoption(parser):
    parser.addoption("--hostile", type=int, default=200, help="hostile inputs, of all kinds together")
    parser.addoption("--hostile-processes", type=int, default=4, help="whole commands, each a process of its own")
    parser.addoption("--hostile-seed", type=int, default=0, help="what they are drawn from")


CAPTIONS = [
    "a lighthouse at dusk",
    "two red kites over a field",
    "a green bicycle",
    "an owl on a fence",
    "the old harbour",
    "oden, gadget",
]


def build_pipe(seed: int = 0):
    """A random Stable Diffusion pipeline: 32 px pictures, 4×8×8 latents, cross-attention at the lower level."""
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from unmemorize.testbed.architecture import TOKENS, scheduler, train_tokenizer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = train_tokenizer(CAPTIONS, vocabulary=600)
        text = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        vae = AutoencoderKL(
            block_out_channels=(8, 8, 16),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=32,
        )
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=2,
            norm_num_groups=4,
        )
        pipe = StableDiffusionPipeline(
            vae=vae.eval(),
            text_encoder=CLIPTextModel(text).eval(),
            tokenizer=tokenizer,
            unet=unet.eval(),
            scheduler=scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def make_pipe():
    """Builds the random pipeline of a seed: for tests that change it."""
    return build_pipe


@pytest.fixture(scope="session")
def tiny_pipe():
    """A random pipeline. Shared by the whole session: no test may change it."""
    return build_pipe()


@pytest.fixture(scope="session")
def tiny_folder(tiny_pipe, tmp_path_factory):
    """The random pipeline as `save_pretrained` leaves it, in float32."""
    folder = tmp_path_factory.mktemp("pipeline") / "tiny"
    tiny_pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_model(tiny_pipe):
    """The random pipeline as a model."""
    from unmemorize.models.load import wrap

    return wrap(tiny_pipe, name="tiny")


@pytest.fixture
def cost(tiny_model):
    """What a test costs the random pipeline."""
    with tiny_model.counted() as cost:
        yield cost


def build_oracle(kind: str = "epsilon"):
    """Six random pictures; `one` and `other` stand for a picture each, `pair` for two, `all` for every one."""
    from unmemorize.models.oracle import FiniteSet, OracleModel

    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    prompts = {"one": [0], "other": [3], "pair": [1, 2], "all": list(range(6))}
    return OracleModel(FiniteSet(images), prompts, kind=kind)


@pytest.fixture
def make_oracle():
    """Builds the oracle of six pictures in the given parameterisation."""
    return build_oracle


@pytest.fixture
def oracle():
    """A perfect memorizer of six pictures."""
    return build_oracle()


def build_gaussian(kind: str = "epsilon"):
    """A model of N(mean, variance), which reads no prompt."""
    from unmemorize.models.oracle import Gaussian, OracleModel

    generator = torch.Generator().manual_seed(1)
    mean = torch.rand(3, 8, 8, generator=generator, dtype=torch.float64) - 0.5
    variance = torch.rand(3, 8, 8, generator=generator, dtype=torch.float64) + 0.1
    return OracleModel(Gaussian(mean, variance), kind=kind)


@pytest.fixture
def make_gaussian():
    """Builds the Gaussian model in the given parameterisation."""
    return build_gaussian


@pytest.fixture
def gaussian():
    """A model that memorizes nothing."""
    return build_gaussian()


@pytest.fixture
def call(monkeypatch, capsys):
    """Run the command line in this process: exit code, what it printed, what it complained of."""

    from unmemorize import cli

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["unmemorize", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        printed = capsys.readouterr()
        for line in printed.out.splitlines():
            if line.startswith("next: unmemorize "):  # what a command says to type can be typed
                cli.app.parse_args(shlex.split(line)[2:], exit_on_error=False, print_error=False)
        return code, printed.out, printed.err

    return run


@pytest.fixture(scope="session")
def chromium():
    """The path of a chromium: the system's, or the one that playwright installed."""
    found = shutil.which("chromium")
    if found is None:
        from playwright.sync_api import sync_playwright

        with sync_playwright() as playwright:
            found = playwright.chromium.executable_path
    if not Path(found).exists():
        pytest.fail("no chromium on this machine: `make browser` installs one", pytrace=False)
    return found


@pytest.fixture(scope="module")
def browser(chromium):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@pytest.fixture
def with_checker(tiny_folder, tmp_path):
    """The pipeline's folder with a safety checker in it, which loading leaves out."""
    folder = shutil.copytree(tiny_folder, tmp_path / "checked")
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "config.json").write_text('{"a": 1}')
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "requires_safety_checker": True}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture
def is_checked():
    """Says whether a saved folder has that safety checker, its entry in the index, and says that it is required."""

    def holds(folder):
        index = json.loads((folder / "model_index.json").read_text())
        return (
            index["safety_checker"] == ["stable_diffusion", "StableDiffusionSafetyChecker"]
            and index["requires_safety_checker"] is True
            and json.loads((folder / "safety_checker" / "config.json").read_text()) == {"a": 1}
        )

    return holds
