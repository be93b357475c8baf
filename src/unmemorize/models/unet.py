"""The adapter for Stable Diffusion 1 and 2: any loaded `StableDiffusionPipeline`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unmemorize.core.errors import NotApplicable
from unmemorize.core.hooks import patched
from unmemorize.core.model import Condition, Parameterisation, Reach
from unmemorize.models.layers import feed_forward_outputs, value_projections
from unmemorize.models.pipeline import PipelineModel
from unmemorize.models.schedules import VariancePreserving


class UNetModel(PipelineModel):
    """A `StableDiffusionPipeline` as a `DiffusionModel`."""

    def __init__(self, pipe: Any, name: str, source: Path | str | None = None) -> None:
        config = pipe.unet.config
        if config.time_cond_proj_dim is not None:
            raise NotApplicable("a guidance-distilled UNet has no unconditional branch")
        if config.addition_embed_type is not None or config.in_channels != pipe.vae.config.latent_channels:
            raise NotApplicable("this UNet takes more than latents and text: pass a Stable Diffusion 1 or 2 pipeline")
        if not hasattr(pipe.scheduler, "alphas_cumprod"):
            raise NotApplicable(f"{type(pipe.scheduler).__name__} has no variance-preserving noise schedule")
        super().__init__(pipe, name, pipe.unet, source)
        self.levels = VariancePreserving(pipe.scheduler.alphas_cumprod)

    @property
    def kind(self) -> Parameterisation:
        """What the UNet was trained to predict, as the scheduler's config says."""
        kind: Parameterisation = self.pipe.scheduler.config.prediction_type
        return kind

    def encode(self, prompts: Sequence[str]) -> Condition:
        """Prompts to embeddings, as the pipeline encodes them; overlong prompts are cut."""
        tokens = self.pipe.tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=self.pipe.tokenizer.model_max_length,
            return_tensors="pt",
        ).to(self.device)
        with torch.no_grad():
            embeds, _ = self.pipe.encode_prompt(list(prompts), self.device, 1, do_classifier_free_guidance=False)
        return Condition(embeds, tokens.input_ids, tokens.attention_mask, texts=tuple(prompts))

    def spans(self, prompt: str) -> list[tuple[int, int]]:
        """The characters of the prompt behind each token position, as the pipeline's tokenizer cut them."""
        tokens = self.pipe.tokenizer(
            prompt,
            padding="max_length",
            truncation=True,
            max_length=self.pipe.tokenizer.model_max_length,
            return_offsets_mapping=True,
        )
        return [(start, stop) for start, stop in tokens.offset_mapping]

    @property
    def vocabulary(self) -> list[str]:
        """The words that are one token of their own, in alphabetical order."""
        tokens = (t.removesuffix("</w>") for t in self.pipe.tokenizer.get_vocab() if t.endswith("</w>"))
        return sorted(t for t in tokens if len(t) > 2 and t.isascii() and t.isalpha())

    @property
    def token_table(self) -> Tensor:
        """What each token puts into the text encoder, before its position is added: (tokens, width)."""
        table: Tensor = self.pipe.text_encoder.get_input_embeddings().weight.detach()
        return table

    def encode_tokens(self, ids: Tensor, inputs: Tensor) -> Condition:
        """What `encode` gives for the prompt with these ids, with gradients to `inputs` = token_table[ids]."""
        encoder = self.pipe.text_encoder
        name = next(n for n, module in encoder.named_modules() if module is encoder.get_input_embeddings())
        with patched(encoder, {name: lambda _: inputs}):
            return Condition(encoder(ids)[0], ids)

    def denoise(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """The UNet's output."""
        output: Tensor = self.denoiser(x, t, encoder_hidden_states=cond.embeds, return_dict=False)[0]
        return output

    def text_projections(self, reach: Reach = "all") -> dict[str, nn.Linear]:
        """Value projections of cross-attention.

        Raises:
            NotApplicable: There is no cross-attention.
        """
        return value_projections(self.denoiser, reach)

    def text_inputs(self, cond: Condition) -> Tensor:
        """The embeddings as they are."""
        return cond.embeds

    def feed_forwards(self) -> dict[str, nn.Linear]:
        """The second linear layers of the transformer feed-forwards.

        Raises:
            NotApplicable: There is none.
        """
        return feed_forward_outputs(self.denoiser)
