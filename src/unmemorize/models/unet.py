"""The adapters for Stable Diffusion 1, 2 and XL, whose denoiser is a UNet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from unmemorize.core.errors import NotApplicable, UserError
from unmemorize.core.hooks import patched
from unmemorize.core.model import AttentionChange, Condition, Parameterisation, Reach
from unmemorize.models.attention import attending
from unmemorize.models.layers import feed_forward_outputs, value_projections
from unmemorize.models.pipeline import PipelineModel
from unmemorize.models.schedules import SchedulerRun, VariancePreserving, is_few_step, require_noise_schedule

FEW_STEPS = 4  # of a distilled model, whose guidance is off


class UNetModel(PipelineModel):
    """A `StableDiffusionPipeline` as a `DiffusionModel`."""

    part = "unet"
    added: str | None = None  # what the network adds to its time embedding

    def _prepare(self) -> None:
        config, scheduler = self._config, self.pipe.scheduler
        if config.time_cond_proj_dim is not None:
            raise NotApplicable("a guidance-distilled UNet has no unconditional branch")
        if config.encoder_hid_dim_type is not None:
            raise NotApplicable("this UNet also reads pictures or other text: call pipe.unload_ip_adapter() first")
        if config.addition_embed_type != self.added or config.in_channels != self.pipe.vae.config.latent_channels:
            raise NotApplicable(f"this UNet takes more or other inputs than {type(self.pipe).__name__} gives it")
        require_noise_schedule(scheduler)
        self.levels = VariancePreserving(scheduler.alphas_cumprod)
        if is_few_step(scheduler):
            self.guidance, self.steps = 1.0, FEW_STEPS

    @property
    def kind(self) -> Parameterisation:
        """What the UNet was trained to predict, as the scheduler's config says."""
        kind: Parameterisation = self.pipe.scheduler.config.prediction_type
        return kind

    def _own_size(self) -> tuple[int, int]:
        if self._config.sample_size is None:
            raise UserError("this UNet's configuration has no sample_size: say size=(height, width)")
        return super()._own_size()

    def encode(self, prompts: Sequence[str]) -> Condition:
        """Prompts to embeddings, as the pipeline encodes them; overlong prompts are cut."""
        texts = self.pipe.maybe_convert_prompt(list(prompts), self._tokenizer)  # a word may have several vectors
        tokens = self._tokenizer(texts, **self._cut, return_tensors="pt").to(self.device)
        with torch.no_grad():
            embeds, pooled = self._embedded(list(prompts))
        return Condition(embeds, tokens.input_ids, tokens.attention_mask, pooled, tuple(prompts))

    def _embedded(self, prompts: list[str]) -> tuple[Tensor, Tensor | None]:
        embeds, _ = self.pipe.encode_prompt(prompts, self.device, 1, do_classifier_free_guidance=False)
        return embeds, None

    @property
    def _tokenizer(self) -> Any:
        return self.pipe.tokenizer

    @property
    def _cut(self) -> dict[str, Any]:
        return {"padding": "max_length", "truncation": True, "max_length": self._tokenizer.model_max_length}

    def spans(self, prompt: str) -> list[tuple[int, int]]:
        """The characters of the prompt behind each token position, as the pipeline's tokenizer cut them."""
        tokens = self._tokenizer(prompt, **self._cut, return_offsets_mapping=True)
        spans: list[tuple[int, int]] = []
        for token, (start, stop) in zip(tokens.tokens(), tokens.offset_mapping, strict=True):
            spans += [(start, stop)] * self._vectors(token)
        longest = len(tokens.offset_mapping)
        return [*spans[: longest - 1], (0, 0)] if len(spans) > longest else spans

    def _vectors(self, token: str) -> int:
        """How many vectors a token stands for: several only for a word of textual inversion."""
        added, count = self._tokenizer.added_tokens_encoder, 1
        while token in added and f"{token}_{count}" in added:
            count += 1
        return count

    @property
    def vocabulary(self) -> list[str]:
        """The words that are one token of their own, in alphabetical order."""
        tokens = (t.removesuffix("</w>") for t in self._tokenizer.get_vocab() if t.endswith("</w>"))
        return sorted(t for t in tokens if len(t) > 2 and t.isascii() and t.isalpha())

    @property
    def token_table(self) -> Tensor:
        """What each token puts into the text encoder, before its position is added: (tokens, width)."""
        table: Tensor = self.pipe.text_encoder.get_input_embeddings().weight.detach()
        return table

    def encode_tokens(self, ids: Tensor, inputs: Tensor) -> Condition:
        """What `encode` gives for the prompt with these ids, with gradients to `inputs` = token_table[ids]."""
        return Condition(_encoded(self.pipe.text_encoder, ids, inputs)[0], ids)

    def denoise(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """The UNet's output."""
        output: Tensor = self.denoiser(x, t, **self.with_text({}, cond), return_dict=False)[0]
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

    def attending(self, change: AttentionChange, reach: Reach = "all") -> AbstractContextManager[None]:
        """Pass the logits of cross-attention through a function, layer by layer.

        Raises:
            NotApplicable: There is no cross-attention, or it is computed by somebody else's processor.
        """
        return attending(self.denoiser, change, reach)

    def feed_forwards(self) -> dict[str, nn.Linear]:
        """The second linear layers of the transformer feed-forwards.

        Raises:
            NotApplicable: There is none.
        """
        return feed_forward_outputs(self.denoiser)


class SDXLModel(UNetModel):
    """A `StableDiffusionXLPipeline`: two CLIP encoders side by side, a pooled vector of the second, and the size."""

    guidance = 5.0
    added = "text_time"
    dispensable = ("text_encoder", "tokenizer")
    pooled = True
    upcasts = True

    def _embedded(self, prompts: list[str]) -> tuple[Tensor, Tensor | None]:
        embeds, _, pooled, _ = self.pipe.encode_prompt(prompts, device=self.device, do_classifier_free_guidance=False)
        return embeds, pooled

    def unconditional(self, count: int) -> Condition:
        """Zeros where the pipeline is set so, as the base model's is; else the empty prompt."""
        empty = self.encode([""] * count)
        if not self.pipe.config.force_zeros_for_empty_prompt or empty.pooled is None:
            return empty
        return replace(empty, embeds=torch.zeros_like(empty.embeds), pooled=torch.zeros_like(empty.pooled))

    def denoise(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """The UNet's output, for pictures made and cut at their size."""
        sizes = torch.tensor([[*self.image_size, 0, 0, *self.image_size]], dtype=cond.embeds.dtype, device=x.device)
        call = {"added_cond_kwargs": {"time_ids": sizes.repeat(len(x), 1)}}
        output: Tensor = self.denoiser(x, t, **self.with_text(call, cond), return_dict=False)[0]
        return output

    def with_text(self, call: Mapping[str, Any], cond: Condition) -> dict[str, Any]:
        """Other embeddings and pooled vectors."""
        added = {**call["added_cond_kwargs"], "text_embeds": cond.pooled}
        return super().with_text(call, cond) | {"added_cond_kwargs": added}

    def schedule(self, steps: int) -> SchedulerRun:
        """A private copy of the pipeline's scheduler."""
        return SchedulerRun(self.pipe.scheduler, steps, self.device, begin=True)

    def _scaled(self, z: Tensor) -> Tensor:
        if (statistics := self._statistics(z)) is None:
            return super()._scaled(z)
        mean, std = statistics
        return (z - mean) * self._vae_scale[0] / std

    def _unscaled(self, x: Tensor) -> Tensor:
        if (statistics := self._statistics(x)) is None:
            return super()._unscaled(x)
        mean, std = statistics
        return x * std / self._vae_scale[0] + mean

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor] | None:
        """Mean and standard deviation by channel of VAEs that come with them, such as Playground's."""
        config = self.pipe.vae.config
        if getattr(config, "latents_mean", None) is None or getattr(config, "latents_std", None) is None:
            return None
        mean = torch.tensor(config.latents_mean).view(1, -1, 1, 1)
        std = torch.tensor(config.latents_std).view(1, -1, 1, 1)
        return mean.to(like), std.to(like)

    @property
    def _tokenizer(self) -> Any:
        return self._readers[0][0]

    @property
    def _readers(self) -> list[tuple[Any, Any]]:
        """Tokenizers with their encoders; some models come without the first."""
        readers = [(self.pipe.tokenizer, self.pipe.text_encoder), (self.pipe.tokenizer_2, self.pipe.text_encoder_2)]
        return [(tokenizer, encoder) for tokenizer, encoder in readers if encoder is not None]

    @property
    def token_table(self) -> Tensor:
        """What each token puts into both encoders, side by side: (tokens, width)."""
        return torch.cat([encoder.get_input_embeddings().weight.detach() for _, encoder in self._readers], dim=1)

    def encode_tokens(self, ids: Tensor, inputs: Tensor) -> Condition:
        """What `encode` gives for the prompt with these ids, with gradients to `inputs` = token_table[ids]."""
        ended = (ids == self._tokenizer.eos_token_id).int()
        padding = ended.cumsum(1) > ended  # behind the first end token
        widths = [encoder.get_input_embeddings().weight.shape[1] for _, encoder in self._readers]
        states, pooled = [], None
        for (tokenizer, encoder), part in zip(self._readers, inputs.split(widths, dim=2), strict=True):
            own = ids.masked_fill(padding, tokenizer.pad_token_id)  # the encoders pad with different tokens
            given = torch.where((own == ids)[..., None], part, encoder.get_input_embeddings().weight[own])
            output = _encoded(encoder, own, given)
            states.append(output.hidden_states[-2])
            pooled = output[0] if output[0].ndim == 2 else pooled
        return Condition(torch.cat(states, dim=-1), ids, pooled=pooled)


def _encoded(encoder: Any, ids: Tensor, inputs: Tensor) -> Any:
    """What a CLIP encoder makes of ids, with these inputs in the place of its own table's."""
    name = next(n for n, module in encoder.named_modules() if module is encoder.get_input_embeddings())
    with patched(encoder, {name: lambda _: inputs}):
        return encoder(ids, output_hidden_states=True)
