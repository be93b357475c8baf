"""The adapters for PixArt and Sana: transformers that read the prompt through cross-attention, masked."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from diffusers.utils import is_bs4_available, is_ftfy_available
from torch import Tensor, nn

from unmemorize.core.errors import NotApplicable
from unmemorize.core.model import Condition, Parameterisation, Reach
from unmemorize.models.layers import linear_layers
from unmemorize.models.pipeline import PipelineModel
from unmemorize.models.schedules import VariancePreserving, require_noise_schedule
from unmemorize.models.transformer import FlowModel, TransformerModel, first_half, read, shown, spans_of, uncleaned


class CrossAttentionModel(TransformerModel):
    """A transformer whose cross-attention reads a projection of the text, and nothing else."""

    guidance = 4.5
    steps = 20

    def text_projections(self, reach: Reach = "all") -> dict[str, nn.Linear]:
        """Value projections of cross-attention; `down-mid` is the first half of them.

        Raises:
            NotApplicable: The transformer takes no hooks.
        """
        return first_half(linear_layers(self.denoiser, "attn2.to_v"), reach)

    def text_stream_values(self, reach: Reach = "all") -> dict[str, nn.Linear]:
        """None: cross-attention reads the text alone.

        Raises:
            NotApplicable: Always.
        """
        return PipelineModel.text_stream_values(self, reach)

    def text_inputs(self, cond: Condition) -> Tensor:
        """The text as it is projected into the transformer."""
        network: Any = self.denoiser
        projected: Tensor = network.caption_projection(cond.embeds.to(network.dtype))
        return projected

    def spans(self, prompt: str) -> list[tuple[int, int]]:
        """The characters behind each token; none where cleaning the prompt changed its length."""
        (text,) = self.pipe._text_preprocessing([prompt], clean_caption=self._clean)
        return uncleaned(self._spans(text), text, prompt)

    def _spans(self, text: str) -> list[tuple[int, int]]:
        return spans_of(self.pipe.tokenizer, self._longest, text)

    def with_text(self, call: Mapping[str, Any], cond: Condition) -> dict[str, Any]:
        """Other embeddings with their mask."""
        return super().with_text(call, cond) | {"encoder_attention_mask": shown(cond)}

    @property
    def _longest(self) -> int:
        """How many tokens of a prompt the pipeline reads."""
        longest: int = inspect.signature(self.pipe.encode_prompt).parameters["max_sequence_length"].default
        return longest

    @property
    def _clean(self) -> bool:
        """Whether the pipeline cleans prompts: by default, where what it needs is installed."""
        wanted: bool = inspect.signature(self.pipe.__call__).parameters["clean_caption"].default
        return wanted and is_bs4_available() and is_ftfy_available()

    def _without_variance(self, output: Tensor, channels: int) -> Tensor:
        """Some networks also say a variance, which the pipeline drops."""
        return output[:, :channels] if output.shape[1] == 2 * channels else output


class PixArtModel(CrossAttentionModel):
    """A `PixArtSigmaPipeline` or `PixArtAlphaPipeline`: T5's tokens, ε prediction."""

    def _prepare(self) -> None:
        require_noise_schedule(self.pipe.scheduler)
        self.levels = VariancePreserving(self.pipe.scheduler.alphas_cumprod)

    @property
    def kind(self) -> Parameterisation:
        """What the transformer was trained to predict, as the scheduler's config says."""
        kind: Parameterisation = self.pipe.scheduler.config.prediction_type
        return kind

    def _encode(self, prompts: list[str]) -> Condition:
        embeds, mask, *_ = self.pipe.encode_prompt(
            prompts, do_classifier_free_guidance=False, device=self.device, clean_caption=self._clean
        )
        texts = self.pipe._text_preprocessing(prompts, clean_caption=self._clean)
        ids = read(self.pipe.tokenizer, self._longest, texts).input_ids
        return Condition(embeds, ids.to(self.device), mask)

    def denoise(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """The transformer's output, for pictures made at their size."""
        height, width = self.image_size
        sizes = {"resolution": torch.tensor([[height, width]]), "aspect_ratio": torch.tensor([[height / width]])}
        output = self.denoiser(
            x,
            **self.with_text({}, cond),
            timestep=t.expand(len(x)),
            added_cond_kwargs={name: value.to(cond.embeds).repeat(len(x), 1) for name, value in sizes.items()},
            return_dict=False,
        )[0]
        return self._without_variance(output, x.shape[1])


class SanaModel(CrossAttentionModel, FlowModel):
    """A `SanaPipeline`: Gemma's tokens behind an instruction, of which the first and the last are kept.

    Its sampler rounds timesteps to whole numbers, so that α and σ are off by up to 1e-3.
    """

    multiple = 32

    def _encode(self, prompts: list[str]) -> Condition:
        return self._read(prompts, self._instruction)

    def unconditional(self, count: int) -> Condition:
        """The empty prompt without the instruction."""
        with torch.no_grad():
            return self._read([""] * count, None)

    def _read(self, prompts: list[str], instruction: list[str] | None) -> Condition:
        embeds, mask, *_ = self.pipe.encode_prompt(
            prompts, do_classifier_free_guidance=False, device=self.device, complex_human_instruction=instruction
        )
        return Condition(embeds, mask=mask)

    @property
    def _instruction(self) -> list[str]:
        lines: list[str] = inspect.signature(self.pipe.__call__).parameters["complex_human_instruction"].default
        return lines

    def _spans(self, text: str) -> list[tuple[int, int]]:
        before = "\n".join(self._instruction)
        tokenizer, longest = self.pipe.tokenizer, self._longest
        length = len(tokenizer.encode(before)) + longest - 2
        spans = spans_of(tokenizer, length, before + text, start=len(before), padding_side="right")
        return [spans[0], *spans[1 - longest :]]

    def text_inputs(self, cond: Condition) -> Tensor:
        """The text as it is projected and normalised in the transformer."""
        network: Any = self.denoiser
        normalised: Tensor = network.caption_norm(super().text_inputs(cond))
        return normalised

    def feed_forwards(self) -> dict[str, nn.Linear]:
        """None.

        Raises:
            NotApplicable: Always.
        """
        raise NotApplicable("the feed-forwards are convolutions")

    def denoise(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """The transformer's output, in float32."""
        network: Any = self.denoiser
        output = network(
            x.to(network.dtype),
            **self.with_text({}, cond.to(x.device, network.dtype)),
            timestep=t.expand(len(x)) * self._config.timestep_scale,
            return_dict=False,
        )[0]
        return self._without_variance(output.float(), x.shape[1])

    @property
    def _latent_dtype(self) -> torch.dtype:
        return torch.float32
