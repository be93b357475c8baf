"""The testbed's parts, freshly initialised: tokenizer, text model, VAE, UNet and noise schedule."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from unmemorize.testbed.dataset import SIZE

TOKENS = 24


def build_vae() -> AutoencoderKL:
    """A VAE from 64 px to 4×16×16 latents."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        block_out_channels=(24, 48, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIZE,
    ).to(memory_format=torch.channels_last)


def train_tokenizer(captions: Sequence[str], vocabulary: int = 2500) -> CLIPTokenizer:
    """A CLIP tokenizer whose byte-pair merges are learned from the captions; any Unicode text encodes."""
    tokenizer = CLIPTokenizer().backend_tokenizer
    learner = Tokenizer(BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    learner.normalizer, learner.pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
    letters = sorted(ByteLevel.alphabet())
    # Ties between merges are broken by the numbers of their tokens, and letters that end a word have random ones.
    occurring = set("".join(captions).lower())
    numbered = [letter + "</w>" for letter in letters if letter in occurring]
    trainer = BpeTrainer(vocab_size=vocabulary, end_of_word_suffix="</w>", special_tokens=numbered, show_progress=False)
    learner.train_from_iterator(captions, trainer)
    merges = json.loads(learner.to_str())["model"]["merges"]
    endings = [letter + "</w>" for letter in letters]
    merged = [left + right for left, right in merges]
    # A token may come about by two merges: it has one number.
    tokens = dict.fromkeys([*letters, *endings, *merged, "<|startoftext|>", "<|endoftext|>"])
    vocab = {token: i for i, token in enumerate(tokens)}
    pairs: Any = [tuple(m) for m in merges]  # which is what it takes, though it declares strings
    return CLIPTokenizer(vocab=vocab, merges=pairs, model_max_length=TOKENS)


def token_ids(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Tensor:
    """The tokens of captions, padded or cut: (n, tokens)."""
    read = tokenizer(list(captions), padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")
    ids: Tensor = read.input_ids
    return ids


def build_text_model(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A three-layer CLIP text model, freshly initialised."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_picture_model(width: int = 128) -> nn.Sequential:
    """A small convolutional network from latents to the space of captions."""
    return nn.Sequential(
        nn.Conv2d(4, 64, 3, stride=2, padding=1),
        nn.GELU(),
        nn.Conv2d(64, width, 3, stride=2, padding=1),
        nn.GELU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(width * 16, width),
    )


def build_unet() -> UNet2DConditionModel:
    """A UNet shaped like Stable Diffusion's, with cross-attention at every level but the first."""
    return UNet2DConditionModel(
        sample_size=SIZE // 4,
        block_out_channels=(32, 64, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=16,
    ).to(memory_format=torch.channels_last)


def scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
