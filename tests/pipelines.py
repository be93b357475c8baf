"""Tiny random pipelines of every family, built in memory: some hundred thousand weights, 64 px pictures."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    ChromaPipeline,
    ChromaTransformer2DModel,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    Kandinsky5T2IPipeline,
    Kandinsky5Transformer3DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tokenizers import Tokenizer, processors
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    GlmConfig,
    GlmModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from unmemorize.testbed.architecture import TOKENS, train_tokenizer

CAPTIONS = [
    "a lighthouse at dusk",
    "two red kites over a field",
    "a green bicycle",
    "an owl on a fence",
    "the old harbour",
    "oden, gadget",
]
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def sd(**unet):
    tokenizer = clip_tokenizer()
    return StableDiffusionPipeline(
        vae=vae(),
        text_encoder=clip(tokenizer, 16),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(**UNET | {"cross_attention_dim": 16, "attention_head_dim": 2} | unet),
        scheduler=DDIMScheduler(**NOISE, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl(zeros: bool = True, first: bool = True, **unet):
    """`zeros`: the unconditional embedding is zero; `first`: it has the first of its two text encoders."""
    one, two = clip_tokenizer(), clip_tokenizer(pad_token="!")
    own = {
        "attention_head_dim": (2, 4),
        "transformer_layers_per_block": (1, 2),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 32,
        "cross_attention_dim": 48 if first else 32,
    }
    return StableDiffusionXLPipeline(
        vae=vae(scaling_factor=0.13025, force_upcast=True),
        text_encoder=clip(one, 16) if first else None,
        tokenizer=one if first else None,
        text_encoder_2=clip(two, 32, projected=True),
        tokenizer_2=two,
        unet=UNet2DConditionModel(**UNET | own | unet),
        scheduler=EulerDiscreteScheduler(**NOISE, timestep_spacing="leading", steps_offset=1),
        force_zeros_for_empty_prompt=zeros,
        add_watermarker=False,
    )


UNET: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}


def vae(channels: int = 4, **settings):
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=64,
        **settings,
    )


def clip_tokenizer(**settings):
    words, merges = clip_words()
    return CLIPTokenizer(vocab=words, merges=merges, model_max_length=TOKENS, **settings)


@functools.cache
def clip_words():
    """Learned once: merges that are equally frequent come in an order of chance, and SDXL's tokenizers share ids."""
    tokenizer = train_tokenizer(CAPTIONS, vocabulary=600)
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    return tokenizer.get_vocab(), [tuple(pair) for pair in merges]


def clip(tokenizer, width: int, projected: bool = False, positions: int = TOKENS):
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=positions,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        projection_dim=width,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def sd3(t5: bool = True, **transformer):
    one, two, three = clip_tokenizer(), clip_tokenizer(pad_token="!"), t5_tokenizer(256)
    own = {
        "sample_size": 8,
        "patch_size": 2,
        "in_channels": 8,
        "out_channels": 8,
        "num_layers": 3,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "joint_attention_dim": 64,
        "caption_projection_dim": 32,
        "pooled_projection_dim": 16 + 32,
        "pos_embed_max_size": 16,
    }
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(**own | transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(8, **FLOW_VAE | {"scaling_factor": 1.5305, "shift_factor": 0.0609}),
        text_encoder=clip(one, 16, projected=True),
        tokenizer=one,
        text_encoder_2=clip(two, 32, projected=True),
        tokenizer_2=two,
        text_encoder_3=t5_encoder(three, 64) if t5 else None,
        tokenizer_3=three if t5 else None,
    )


def flux(distilled: bool = True, **transformer):
    """`distilled`: guidance is an input of the network, as of the dev model; else it is like schnell."""
    one, two = clip_tokenizer(), t5_tokenizer(512)
    own = {
        "num_layers": 2,
        "num_single_layers": 2,
        "pooled_projection_dim": 16,
        "guidance_embeds": distilled,
    }
    return FluxPipeline(
        transformer=FluxTransformer2DModel(**FLUX | own | transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0 if distilled else 1.0, use_dynamic_shifting=distilled),
        vae=vae(4, **FLOW_VAE),
        text_encoder=clip(one, 16),
        tokenizer=one,
        text_encoder_2=t5_encoder(two, 32),
        tokenizer_2=two,
    )


def chroma(**transformer):
    tokenizer = t5_tokenizer(512)
    own = {
        "num_layers": 1,
        "num_single_layers": 1,
        "approximator_hidden_dim": 32,
        "approximator_layers": 1,
        "approximator_num_channels": 16,
    }
    return ChromaPipeline(
        transformer=ChromaTransformer2DModel(**FLUX | own | transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=vae(4, **FLOW_VAE),
        text_encoder=t5_encoder(tokenizer, 32),
        tokenizer=tokenizer,
    )


def pixart(**transformer):
    tokenizer = t5_tokenizer(300)
    return PixArtSigmaPipeline(
        tokenizer=tokenizer,
        text_encoder=t5_encoder(tokenizer, 32),
        vae=vae(4, scaling_factor=0.13025),
        transformer=PixArtTransformer2DModel(**PIXART | {"use_additional_conditions": False} | transformer),
        scheduler=DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear"),
    )


def pixart_alpha(**transformer):
    tokenizer = t5_tokenizer(120)
    return PixArtAlphaPipeline(
        tokenizer=tokenizer,
        text_encoder=t5_encoder(tokenizer, 32),
        vae=vae(4),
        transformer=PixArtTransformer2DModel(**PIXART | transformer),
        scheduler=DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear"),
    )


def sana(**transformer):
    tokenizer = gemma_tokenizer(512)
    blocks = ("ResBlock", "EfficientViTBlock")
    own = {
        "patch_size": 1,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 8,
        "cross_attention_dim": 16,
        "caption_channels": 16,
        "sample_size": 32,
    }
    return SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=gemma(tokenizer),
        vae=AutoencoderDC(
            in_channels=3,
            latent_channels=4,
            attention_head_dim=2,
            encoder_block_types=blocks,
            decoder_block_types=blocks,
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_qkv_multiscales=((), (5,)),
            decoder_qkv_multiscales=((), (5,)),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            downsample_block_type="conv",
            upsample_block_type="interpolate",
            decoder_norm_types="rms_norm",
            decoder_act_fns="silu",
            scaling_factor=0.41407,
        ),
        transformer=SanaTransformer2DModel(**own | transformer),
        scheduler=DPMSolverMultistepScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0, algorithm_type="dpmsolver++"
        ),
    )


def qwen(**transformer):
    tokenizer = qwen_tokenizer()
    own = {
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 4,
        "num_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 16,
        "guidance_embeds": False,
        "axes_dims_rope": (4, 6, 6),
    }
    return QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=0.9,
            max_image_seq_len=8192,
            shift_terminal=0.02,
            time_shift_type="exponential",
        ),
        vae=AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 2, 2, 2],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=[0.1, -0.2, 0.3, 0.0],
            latents_std=[1.5, 0.7, 1.1, 2.0],
        ),
        text_encoder=qwen_vl(tokenizer),
        tokenizer=tokenizer,
        transformer=QwenImageTransformer2DModel(**own | transformer),
    )


def z_image(**transformer):
    tokenizer = qwen_tokenizer()
    own = {
        "all_patch_size": (2,),
        "all_f_patch_size": (1,),
        "in_channels": 4,
        "dim": 32,
        "n_layers": 2,
        "n_refiner_layers": 1,
        "n_heads": 2,
        "n_kv_heads": 2,
        "qk_norm": True,
        "cap_feat_dim": 16,
        "rope_theta": 256.0,
        "t_scale": 1000.0,
        "axes_dims": [8, 4, 4],
        "axes_lens": [256, 32, 32],
    }
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(4, **FLOW_VAE),
        text_encoder=qwen3(tokenizer, layers=3),
        tokenizer=tokenizer,
        transformer=ZImageTransformer2DModel(**own | transformer),
    )


def flux2_klein(distilled: bool = False, **transformer):
    parts = flux2_parts(qwen_tokenizer(), layers=30, **{"guidance_embeds": False} | transformer)
    return Flux2KleinPipeline(**parts, is_distilled=distilled)


def flux2(**transformer):
    """Its tokenizer stands for the part of a processor that reads text."""
    tokenizer = qwen_tokenizer()
    tokenizer.chat_template = PARTS
    return Flux2Pipeline(**flux2_parts(tokenizer, layers=31, **{"guidance_embeds": True} | transformer))


def flux2_parts(tokenizer, layers: int, **transformer):
    own = {
        "patch_size": 1,
        "in_channels": 16,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 48,
        "timestep_guidance_channels": 32,
        "axes_dims_rope": (4, 4, 4, 4),
    }
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        "vae": flux2_vae(),
        "text_encoder": qwen3(tokenizer, layers=layers),
        "tokenizer": tokenizer,
        "transformer": Flux2Transformer2DModel(**own | transformer),
    }


def flux2_vae():
    return AutoencoderKLFlux2(
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def aura_flow(**transformer):
    tokenizer = t5_tokenizer(256)
    own = {
        "sample_size": 8,
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 4,
        "num_mmdit_layers": 2,
        "num_single_dit_layers": 1,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "joint_attention_dim": 32,
        "caption_projection_dim": 32,
        "pos_embed_max_size": 256,
    }
    return AuraFlowPipeline(
        tokenizer=tokenizer,
        text_encoder=t5_encoder(tokenizer, 32),
        vae=vae(scaling_factor=0.13025, force_upcast=True),
        transformer=AuraFlowTransformer2DModel(**own | transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
    )


def cogview4(**transformer):
    tokenizer = glm_tokenizer()
    own = {
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "text_embed_dim": 32,
        "time_embed_dim": 8,
        "condition_dim": 4,
        "sample_size": 8,
        "rope_axes_dim": (64, 64),
        "pos_embed_max_size": 16,
    }
    return CogView4Pipeline(
        tokenizer=tokenizer,
        text_encoder=glm(tokenizer),
        vae=vae(4, **FLOW_VAE | {"scaling_factor": 1.0, "shift_factor": 0.0}),
        transformer=CogView4Transformer2DModel(**own | transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(
            base_shift=0.25,
            max_shift=0.75,
            base_image_seq_len=256,
            use_dynamic_shifting=True,
            time_shift_type="linear",
        ),
    )


def kandinsky5(**transformer):
    tokenizer, second = qwen_tokenizer(), clip_tokenizer()
    own = {
        "in_visual_dim": 4,
        "out_visual_dim": 4,
        "in_text_dim": 16,
        "in_text_dim2": 16,
        "time_dim": 32,
        "patch_size": (1, 2, 2),
        "model_dim": 48,
        "ff_dim": 64,
        "num_text_blocks": 1,
        "num_visual_blocks": 2,
        "axes_dims": (8, 8, 8),
    }
    pipe = Kandinsky5T2IPipeline(
        transformer=Kandinsky5Transformer3DModel(**own | transformer),
        vae=vae(4, scaling_factor=0.3611),
        text_encoder=qwen_vl(tokenizer),
        tokenizer=TextProcessor(tokenizer),
        text_encoder_2=clip(second, 16, positions=77),
        tokenizer_2=second,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    pipe.resolutions = [(64, 64), (96, 64)]  # of width and height; its own are of a megapixel
    return pipe


class TextProcessor:
    """The part of a processor that reads text: the other, which reads pictures, needs torchvision."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __call__(self, text=None, images=None, videos=None, **settings):
        return self.tokenizer(text, **settings)


def lumina2(**transformer):
    tokenizer = gemma_tokenizer(512)
    own = {
        "sample_size": 8,
        "patch_size": 2,
        "in_channels": 4,
        "hidden_size": 24,
        "num_layers": 2,
        "num_refiner_layers": 1,
        "num_attention_heads": 3,
        "num_kv_heads": 1,
        "multiple_of": 16,
        "axes_dim_rope": (4, 2, 2),
        "axes_lens": (300, 64, 64),
        "cap_feat_dim": 16,
    }
    return Lumina2Pipeline(
        transformer=Lumina2Transformer2DModel(**own | transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0, use_dynamic_shifting=True),
        vae=vae(4, **FLOW_VAE),
        text_encoder=gemma(tokenizer),
        tokenizer=tokenizer,
    )


PIXART = {
    "sample_size": 32,
    "num_layers": 2,
    "patch_size": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 3,
    "caption_channels": 32,
    "in_channels": 4,
    "cross_attention_dim": 24,
    "out_channels": 8,
    "attention_bias": True,
    "norm_type": "ada_norm_single",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
}
FLUX = {
    "patch_size": 1,
    "in_channels": 16,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "axes_dims_rope": (4, 4, 8),
}
FLOW_VAE = {
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}


def t5_tokenizer(length: int):
    letters = "abcdefghijklmnopqrstuvwxyz0123456789,.'-ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    words = sorted({word for caption in CAPTIONS for word in caption.split()})
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
    vocabulary += [(f"▁{word}", -4.0) for word in words] + [(letter, -6.0) for letter in letters]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=length)


def t5_encoder(tokenizer, width: int):
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=8,
        d_ff=37,
        num_layers=2,
        num_heads=2,
        relative_attention_num_buckets=8,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
    )
    return T5EncoderModel(config)


def gemma_tokenizer(length: int):
    """Whole words with the space before them, letters and bytes."""
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *map(chr, range(33, 127)), "▁", "\n"]
    pieces += [f"<0x{byte:02X}>" for byte in range(256)]
    merges = []
    for word in sorted({f"▁{word}" for caption in CAPTIONS for word in caption.split()}):
        for end in range(1, len(word)):
            if word[: end + 1] not in pieces:
                pieces.append(word[: end + 1])
                merges.append((word[:end], word[end]))
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = GemmaTokenizer(vocab=vocabulary, merges=merges, model_max_length=length)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", 2)]
    )
    return tokenizer


def gemma(tokenizer):
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=1024,
        sliding_window=512,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    return Gemma2Model(config)


PARTS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for part in m['content'] %}{{ part['text'] }}{% endfor %}"
    "<|im_end|>\n{% endfor %}"
)
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def qwen_tokenizer():
    """Pieces of bytes, which hold the space before a word, and a chat template."""
    learner = Tokenizer(BPE())
    learner.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(vocab_size=400, initial_alphabet=ByteLevel.alphabet(), show_progress=False)
    learner.train_from_iterator(CAPTIONS, trainer)
    model = json.loads(learner.to_str())["model"]
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = model["vocab"] | {token: len(model["vocab"]) + i for i, token in enumerate(special)}
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=merges, model_max_length=2048)
    tokenizer.add_special_tokens({"additional_special_tokens": special[1:]})
    tokenizer.chat_template = CHAT
    return tokenizer


def glm_tokenizer():
    """Padded on the left, behind a first token."""
    tokenizer = qwen_tokenizer()
    tokenizer.padding_side = "left"
    first = "<|im_start|>"
    special = [(first, tokenizer.convert_tokens_to_ids(first))]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A", pair=f"{first} $A $B", special_tokens=special
    )
    return tokenizer


def glm(tokenizer):
    config = GlmConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        pad_token_id=0,
        eos_token_id=1,
    )
    return GlmModel(config)


def qwen3(tokenizer, layers: int):
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=2048,
    )
    return Qwen3ForCausalLM(config)


def qwen_vl(tokenizer):
    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
            "rope_theta": 1000000.0,
            "vocab_size": len(tokenizer),
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 16,
            "fullatt_block_indexes": [0],
        },
        hidden_size=16,
        vocab_size=len(tokenizer),
        vision_end_token_id=1,
        vision_start_token_id=0,
        vision_token_id=2,
    )
    return Qwen2_5_VLForConditionalGeneration(config)


FAMILIES: dict[str, Callable[..., Any]] = {
    "sd": sd,
    "sdxl": sdxl,
    "sd3": sd3,
    "flux": flux,
    "chroma": chroma,
    "pixart": pixart,
    "pixart_alpha": pixart_alpha,
    "sana": sana,
    "qwen": qwen,
    "z_image": z_image,
    "flux2_klein": flux2_klein,
    "flux2": flux2,
    "lumina2": lumina2,
    "aura_flow": aura_flow,
    "cogview4": cogview4,
    "kandinsky5": kandinsky5,
}


def tiny(family: str, seed: int = 0, scheduler: Any = None, **settings):
    """A random pipeline of a family, with weights at which every part of the network matters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = FAMILIES[family](**settings)
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.eval()
        enlarge(pipe.unet if hasattr(pipe, "unet") else pipe.transformer)
    if scheduler is not None:
        pipe.scheduler = scheduler
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def enlarge(denoiser):
    """Transformers are born with gates that are almost shut."""
    for name, parameter in denoiser.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, 0.7 / parameter.shape[1] ** 0.5)
        elif "norm" in name and name.endswith("weight"):
            parameter.normal_(1, 0.1)
        else:
            parameter.normal_(0, 0.05)
