"""What single-file checkpoints leave out: how their networks are built, and the words of their tokenizers."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from unmemorize.core.errors import UserError
from unmemorize.models.source import CROSS_ATTENTION, Source, header, pipeline_index

_MERGES = Path(__file__).parent / "assets" / "clip-merges.txt.xz"
_NOISE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "steps_offset": 1,
}
_VAE = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
_CLIP = {"vocab_size": 49408, "max_position_embeddings": 77, "bos_token_id": 49406, "eos_token_id": 49407}
_CLIP_L = _CLIP | {
    "architectures": ["CLIPTextModel"],
    "model_type": "clip_text_model",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
    "pad_token_id": 49407,
}
_CLIP_G = _CLIP | {
    "architectures": ["CLIPTextModelWithProjection"],
    "model_type": "clip_text_model",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
    "pad_token_id": 0,
}
_UNET = {"_class_name": "UNet2DConditionModel", "in_channels": 4, "out_channels": 4, "layers_per_block": 2}

# Files of a pipeline's folder by path, for Stable Diffusion 1 and XL.
CONFIGS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "StableDiffusionPipeline": {
        "scheduler/scheduler_config.json": _NOISE
        | {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "set_alpha_to_one": False},
        "text_encoder/config.json": _CLIP_L,
        "unet/config.json": _UNET
        | {
            "sample_size": 64,
            "block_out_channels": [320, 640, 1280, 1280],
            "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
            "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
            "attention_head_dim": 8,
            "cross_attention_dim": 768,
        },
        "vae/config.json": _VAE | {"sample_size": 512, "scaling_factor": 0.18215},
    },
    "StableDiffusionXLPipeline": {
        "scheduler/scheduler_config.json": _NOISE
        | {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"},
        "text_encoder/config.json": _CLIP_L,
        "text_encoder_2/config.json": _CLIP_G,
        "unet/config.json": _UNET
        | {
            "sample_size": 128,
            "block_out_channels": [320, 640, 1280],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "transformer_layers_per_block": [1, 2, 10],
            "attention_head_dim": [5, 10, 20],
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        "vae/config.json": _VAE | {"sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
    },
}
_LIBRARIES = {
    "scheduler": "diffusers",
    "unet": "diffusers",
    "vae": "diffusers",
    "text_encoder": "transformers",
    "text_encoder_2": "transformers",
}
_PADDING = {"tokenizer": "<|endoftext|>", "tokenizer_2": "!"}


@contextmanager
def configuration(source: Source, given: str | None) -> Iterator[Path]:
    """The folder that a single-file checkpoint's configuration is read from: the one given, or one made for the block.

    Raises:
        UserError: The folder given is another family's, or none is given where the file alone does not say all.
    """
    if given is not None:
        family = pipeline_index(given, Path(given))["_class_name"]
        if family != source.family:
            raise UserError(f"{given}: a folder of {family}, but {source.path} is a {source.family}: name one of those")
        yield Path(given)
        return
    if reason := _unsaid(source):
        raise UserError(f"{source.path}: {reason}: name a folder of its family for its configuration (--config)")
    with TemporaryDirectory() as folder:
        write_configuration(str(source.family), Path(folder))
        yield Path(folder)


def _unsaid(source: Source) -> str | None:
    """Why the file alone does not say how its networks are built and used."""
    if source.family not in CONFIGS:
        return f"a {source.family}, whose configuration is not in the file"
    tensors = header(Path(source.path))
    if source.family == "StableDiffusionPipeline" and tensors[CROSS_ATTENTION]["shape"][-1] != 768:
        return "a Stable Diffusion 2, which may predict ε or v"
    if "v_pred" in tensors:
        return "it predicts v, on a schedule of its own"
    return None


def write_configuration(family: str, folder: Path) -> None:
    """Write the configuration and tokenizers of a family, as a pipeline's folder without weights."""
    from transformers import CLIPTokenizer

    index: dict[str, Any] = {"_class_name": family}
    for file, content in CONFIGS[family].items():
        part = file.split("/")[0]
        (folder / part).mkdir()
        (folder / file).write_text(json.dumps(content), encoding="utf-8")
        names = content.get("architectures", [content.get("_class_name")])
        index[part] = [_LIBRARIES[part], names[0]]
    words = clip_words()
    for part, padding in _PADDING.items():
        if part.replace("tokenizer", "text_encoder") in index:
            CLIPTokenizer(**words, model_max_length=77, pad_token=padding).save_pretrained(folder / part)
            index[part] = ["transformers", "CLIPTokenizer"]
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")


def clip_words() -> dict[str, Any]:
    """CLIP's vocabulary and merges: bytes, bytes that end a word, what was merged, begin and end."""
    merges = [tuple(line.split()) for line in lzma.decompress(_MERGES.read_bytes()).decode().splitlines()]
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = [chr(byte) for byte in printed] + [chr(0x100 + i) for i in range(256 - len(printed))]  # in GPT-2's order
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    return {"vocab": vocabulary, "merges": merges}
