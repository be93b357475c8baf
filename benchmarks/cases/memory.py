"""What published models take, computed from their shapes: GB of weights, and operations an evaluation of one row.

Nothing is downloaded. Networks are built without memory for their weights, and called without computing. Shapes are the
defaults of diffusers' and transformers' classes or the settings below, both those of published configurations as far as
they are known here; a test holds the numbers of parameters against those that the models are published with.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.models.attention_processor import Attention
from harness import Options, Row, Study, table
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from pipelines import tiny
from unmemorize.core.model import Condition
from unmemorize.models.configs import CONFIGS
from unmemorize.models.load import wrap

HALF, SINGLE, TRAINED = 2, 4, 16  # bytes of a parameter; trained: weight, gradient and AdamW's two moments

SD3 = {
    "sample_size": 128,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048,
    "out_channels": 16,
}
MEDIUM = {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 192}
LARGE = {"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "pos_embed_max_size": 192}
COGVIEW = {"num_layers": 28, "num_attention_heads": 32, "attention_head_dim": 128, "text_embed_dim": 4096}
KANDINSKY = {"in_visual_dim": 16, "out_visual_dim": 16, "model_dim": 2560, "ff_dim": 10240, "num_visual_blocks": 50}
KANDINSKY |= {"axes_dims": (32, 48, 48)}
T5 = {"vocab_size": 32128, "d_kv": 64, "num_layers": 24, "feed_forward_proj": "gated-gelu"}
QWEN = {"vocab_size": 151936, "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8}
QWEN_TEXT = {"vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28}
QWEN_TEXT |= {"num_attention_heads": 28, "num_key_value_heads": 4}
QWEN_VISION = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584}
CLIP = CONFIGS["StableDiffusionXLPipeline"]

ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "CLIP-L": ("CLIPTextModel", dict(CLIP["text_encoder/config.json"])),
    "CLIP-G": ("CLIPTextModelWithProjection", dict(CLIP["text_encoder_2/config.json"])),
    "T5-XXL": ("T5EncoderModel", T5 | {"d_model": 4096, "d_ff": 10240, "num_heads": 64}),
    "Pile-T5-XL": ("UMT5EncoderModel", T5 | {"d_model": 2048, "d_ff": 5120, "num_heads": 32}),
    "Gemma 2 2B": ("Gemma2Model", {}),
    "Qwen 3 4B": ("Qwen3Model", QWEN | {"hidden_size": 2560, "intermediate_size": 9728}),
    "Qwen 3 8B": ("Qwen3Model", QWEN | {"hidden_size": 4096, "intermediate_size": 12288}),
    "Qwen 2.5-VL 7B": (
        "Qwen2_5_VLForConditionalGeneration",
        {"text_config": QWEN_TEXT, "vision_config": QWEN_VISION},
    ),
    "GLM 4 9B": ("GlmModel", {"num_hidden_layers": 40}),
    "Mistral 3 24B": ("Mistral3ForConditionalGeneration", {}),
}


@dataclass(frozen=True)
class Published:
    """A model: its denoiser, the parameters that this is published with in 10⁹, and its text encoders."""

    denoiser: str
    billions: float
    encoders: Sequence[str]
    settings: dict[str, Any]

    @property
    def built(self) -> torch.nn.Module:
        """The denoiser, without memory for its weights."""
        return built(diffusers, self.denoiser, **self.settings)

    @property
    def parameters(self) -> int:
        """Those of the denoiser."""
        return count(self.built)


def published(denoiser: str, billions: float, *encoders: str, **settings: Any) -> Published:
    return Published(denoiser, billions, encoders, settings)


TWO = ("CLIP-L", "CLIP-G")
MODELS = {
    "Stable Diffusion 1.5": published(
        "UNet2DConditionModel", 0.86, "CLIP-L", **CONFIGS["StableDiffusionPipeline"]["unet/config.json"]
    ),
    "Stable Diffusion XL": published("UNet2DConditionModel", 2.6, *TWO, **CLIP["unet/config.json"]),
    "Stable Diffusion 3 medium": published("SD3Transformer2DModel", 2, *TWO, "T5-XXL", **SD3 | MEDIUM),
    "Stable Diffusion 3.5 large": published(
        "SD3Transformer2DModel", 8.1, *TWO, "T5-XXL", **SD3 | LARGE, qk_norm="rms_norm"
    ),
    "Flux.1": published("FluxTransformer2DModel", 12, "CLIP-L", "T5-XXL", guidance_embeds=True),
    "Chroma": published("ChromaTransformer2DModel", 8.9, "T5-XXL"),
    "PixArt-Σ": published("PixArtTransformer2DModel", 0.6, "T5-XXL", sample_size=128, caption_channels=4096),
    "Sana": published("SanaTransformer2DModel", 1.6, "Gemma 2 2B"),
    "Qwen-Image": published("QwenImageTransformer2DModel", 20, "Qwen 2.5-VL 7B"),
    "Z-Image": published("ZImageTransformer2DModel", 6, "Qwen 3 4B"),
    "Flux.2 klein 4B": published(
        "Flux2Transformer2DModel",
        4,
        "Qwen 3 4B",
        num_layers=5,
        num_single_layers=20,
        num_attention_heads=24,
        joint_attention_dim=7680,
        guidance_embeds=False,
    ),
    "Flux.2 klein 9B": published(
        "Flux2Transformer2DModel",
        9,
        "Qwen 3 8B",
        num_single_layers=24,
        num_attention_heads=32,
        joint_attention_dim=12288,
        guidance_embeds=False,
    ),
    "Flux.2 dev": published("Flux2Transformer2DModel", 32, "Mistral 3 24B"),
    "Lumina-Image 2": published("Lumina2Transformer2DModel", 2.6, "Gemma 2 2B", cap_feat_dim=2304),
    "AuraFlow": published("AuraFlowTransformer2DModel", 6.8, "Pile-T5-XL"),
    "CogView4": published("CogView4Transformer2DModel", 6, "GLM 4 9B", **COGVIEW),
    "Kandinsky 5 Lite": published("Kandinsky5Transformer3DModel", 6, "Qwen 2.5-VL 7B", "CLIP-L", **KANDINSKY),
}


# What one row is given: the family of the adapter, pixels, and the text's tokens, width and pooled width.
# Where there is no greatest length, of a language model's prompts, as many tokens as others take at most.
ROWS = {
    "Stable Diffusion 1.5": ("sd", 512, 77, 768, None),
    "Stable Diffusion XL": ("sdxl", 1024, 77, 2048, 1280),
    "Stable Diffusion 3 medium": ("sd3", 1024, 333, 4096, 2048),
    "Stable Diffusion 3.5 large": ("sd3", 1024, 333, 4096, 2048),
    "Flux.1": ("flux", 1024, 512, 4096, 768),
    "Chroma": ("chroma", 1024, 512, 4096, None),
    "PixArt-Σ": ("pixart", 1024, 300, 4096, None),
    "Sana": ("sana", 1024, 300, 2304, None),
    "Qwen-Image": ("qwen", 1024, 512, 3584, None),
    "Z-Image": ("z_image", 1024, 512, 2560, None),
    "Flux.2 klein 4B": ("flux2_klein", 1024, 512, 7680, None),
    "Flux.2 klein 9B": ("flux2_klein", 1024, 512, 12288, None),
    "Flux.2 dev": ("flux2", 1024, 512, 15360, None),
    "Lumina-Image 2": ("lumina2", 1024, 256, 2304, None),
    "AuraFlow": ("aura_flow", 1024, 256, 2048, None),
    "CogView4": ("cogview4", 1024, 512, 4096, None),
    "Kandinsky 5 Lite": ("kandinsky5", 1024, 512, 3584, 768),
}
RATE = 100  # 10¹² operations a second


def operations(name: str) -> float:
    """10¹² operations of matrix products, convolutions and attention in one row of an evaluation."""
    family, pixels, tokens, width, pooled = ROWS[name]
    pipe = tiny(family)
    network = MODELS[name].built
    for layer in network.modules():
        if isinstance(layer, Attention):
            layer.register_forward_pre_hook(without_numbers, with_kwargs=True)
    setattr(pipe, "unet" if hasattr(pipe, "unet") else "transformer", network)
    model = wrap(pipe, size=(pixels, pixels))
    channels, side, _ = model._latent_shape
    if family == "sana":
        side = pixels // 32  # its VAE is deeper than the tiny one's
    with torch.device("meta"), torch.no_grad():
        x, t, embeds = torch.empty(1, channels, side, side), torch.empty(()), torch.empty(1, tokens, width)
        pooling = None if pooled is None else torch.empty(1, pooled)
    # A mask has numbers: adapters read from it how long a prompt is.
    cond = Condition(embeds, mask=torch.ones(1, tokens, dtype=torch.long), pooled=pooling)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.denoise(x, t, cond)
    return float(counter.get_total_flops() / 1e12)


def without_numbers(layer: torch.nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """What attention is given, masks included, as shapes alone."""
    return tree_map_only(torch.Tensor, lambda given: given.to("meta"), (arguments, named))


@cache
def of_encoder(name: str) -> int:
    """The parameters of a text encoder."""
    cls, settings = ENCODERS[name]
    return count(built(transformers, cls, **settings))


def built(library: Any, name: str, **settings: Any) -> torch.nn.Module:
    """A network without memory for its weights; of transformers' the settings are those of its configuration."""
    cls = getattr(library, name)
    own = {key: value for key, value in settings.items() if not key.startswith("_")}
    with torch.device("meta"):
        network: torch.nn.Module = cls(**own) if library is diffusers else cls(cls.config_class(**own))
    return network


def count(network: torch.nn.Module) -> int:
    """How many parameters it has."""
    return sum(parameter.numel() for parameter in network.parameters())


def measure(options: Options) -> Row:
    rows = {}
    for name, model in MODELS.items():
        encoders = {key: of_encoder(key) for key in model.encoders}
        rows[name] = {"denoiser": model.parameters, "encoders": encoders, "operations": operations(name)}
    return rows


def page(numbers: Row) -> Iterator[str]:
    lines = []
    for name, row in numbers.items():
        denoiser, others = row["denoiser"], sum(row["encoders"].values())
        sizes = (
            (denoiser + others) * SINGLE,
            (denoiser + others) * HALF,
            denoiser * HALF,
            denoiser * TRAINED + others * SINGLE,
        )
        texts = ", ".join(row["encoders"])
        work = row["operations"]
        parts = [f"{denoiser / 1e9:.2f}", texts, *(f"{size / 1e9:.1f}" for size in sizes)]
        lines.append([name, *parts, f"{work:.1f}", f"{work / RATE:.3f}"])
    head = (
        "computed from shapes; weights in GB | denoiser, 10⁹ parameters | text encoders | float32 | half precision | "
        f"the denoiser alone | training the whole denoiser | 10¹² operations an evaluation | seconds at {RATE} TFLOP/s"
    )
    yield from table(head, lines)


STUDY = Study(title="", about="", page=page, measure=measure)
