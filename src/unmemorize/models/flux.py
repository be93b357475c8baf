"""The adapters for Flux.1 and for Chroma, which was made of it: T5 prompts, latents in tokens of 2 × 2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from unmemorize.core.model import Condition
from unmemorize.models.transformer import EvenFlowModel, read, shown, spans_of

TOKENS = 512
SCHNELL_STEPS = 4


class FluxModel(EvenFlowModel):
    """A `FluxPipeline`: T5's tokens, and a pooled CLIP vector.

    The dev model is distilled to one evaluation a step: its guidance is an input of the network, `embedded`, and
    `guidance` above 1 is true classifier-free guidance on top, with two calls, as the pipeline's `true_cfg_scale`.
    """

    guidance = 1.0
    steps = 28
    apart = True
    pooled = True
    embedded = 3.5

    def _prepare(self) -> None:
        super()._prepare()
        if not self.distilled and self.pooled:  # schnell
            self.steps = SCHNELL_STEPS

    @property
    def _reader(self) -> tuple[Any, int]:
        return self.pipe.tokenizer_2, TOKENS

    def _encode(self, prompts: list[str]) -> Condition:
        embeds, pooled, _ = self.pipe.encode_prompt(prompts, None, device=self.device, max_sequence_length=TOKENS)
        tokens = read(*self._reader, prompts).to(self.device)
        return Condition(embeds, tokens.input_ids, tokens.attention_mask, pooled)

    def spans(self, prompt: str) -> list[tuple[int, int]]:
        """The characters behind each of T5's tokens."""
        return spans_of(*self._reader, prompt)

    def denoise(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """The transformer's output, as latents."""
        count, _, height, width = x.shape
        positions = self.pipe._prepare_latent_image_ids(count, height // 2, width // 2, "cpu", torch.float32)
        call = {
            "hidden_states": pack(x),
            "timestep": t.expand(count).to(x.dtype) / 1000,
            "img_ids": positions.to(x.device, cond.embeds.dtype),
        }
        output = self.denoiser(**self.with_text(call | self._also(x), cond), return_dict=False)[0]
        return unpack(output, height, width)

    def _also(self, x: Tensor) -> dict[str, Tensor | None]:
        """What the network is given beside text and picture."""
        embedded = torch.full([len(x)], self.embedded, dtype=torch.float32, device=x.device)
        return {"guidance": embedded if self.distilled else None}

    @property
    def distilled(self) -> bool:
        """Of the dev model; schnell is trained to few steps, and has none built in either."""
        return bool(self._config.get("guidance_embeds"))

    def with_text(self, call: Mapping[str, Any], cond: Condition) -> dict[str, Any]:
        """Other embeddings, with the places of their tokens, and pooled vectors."""
        places = torch.zeros(cond.embeds.shape[1], 3).to(cond.embeds)
        pooled = {"pooled_projections": cond.pooled} if self.pooled else {}
        return super().with_text(call, cond) | {"txt_ids": places} | pooled

    @property
    def _latent_shape(self) -> tuple[int, int, int]:
        channels, height, width = super()._latent_shape
        return channels // 4, height, width


class ChromaModel(FluxModel):
    """A `ChromaPipeline`: no CLIP and no embedded guidance; text is masked but for one token of padding."""

    guidance = 5.0
    steps = 35
    pooled = False

    @property
    def _reader(self) -> tuple[Any, int]:
        return self.pipe.tokenizer, TOKENS

    def _encode(self, prompts: list[str]) -> Condition:
        embeds, _, mask, *_ = self.pipe.encode_prompt(
            prompts, device=self.device, do_classifier_free_guidance=False, max_sequence_length=TOKENS
        )
        ids = read(*self._reader, prompts).input_ids.to(self.device)
        return Condition(embeds, ids, mask.long())

    def _also(self, x: Tensor) -> dict[str, Tensor | None]:
        return {}

    def with_text(self, call: Mapping[str, Any], cond: Condition) -> dict[str, Any]:
        """Other embeddings, with a mask of their tokens and of the picture's, all of which count."""
        pixels = torch.ones(call["hidden_states"].shape[:2], dtype=cond.embeds.dtype, device=cond.embeds.device)
        mask = torch.cat([shown(cond).to(pixels), pixels], dim=1)
        return super().with_text(call, cond) | {"attention_mask": mask}


def pack(x: Tensor) -> Tensor:
    """Latents (n, c, h, w) as tokens of 2 × 2, (n, h/2 · w/2, 4c)."""
    count, channels, height, width = x.shape
    blocks = x.view(count, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return blocks.reshape(count, height // 2 * (width // 2), channels * 4)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Tokens of 2 × 2 as latents (n, c, h, w)."""
    count, _, channels = tokens.shape
    blocks = tokens.view(count, height // 2, width // 2, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return blocks.reshape(count, channels // 4, height, width)
