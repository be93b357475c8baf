"""What families with a transformer share, and the adapter for Stable Diffusion 3."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from unmemorize.core.errors import NotApplicable
from unmemorize.core.model import Condition, Parameterisation, Reach, joined
from unmemorize.models.layers import linear_layers
from unmemorize.models.pipeline import PipelineModel
from unmemorize.models.schedules import RectifiedFlow, SchedulerRun, require_flow_schedule

T5_TOKENS = 256  # that Stable Diffusion 3 reads
AT_ONCE = 16  # prompts encoded at a time: of T5 or a language model each takes megabytes, and its attention more


class TransformerModel(PipelineModel):
    """A pipeline with a transformer and long prompts."""

    multiple = 16  # the VAE's 8, and patches of 2
    feeds: tuple[str, ...] = ("ff.net.2", "ff_context.net.2")  # names of the second layers of feed-forwards
    stream: tuple[str, ...] = ("add_v_proj",)  # names of value projections of the text's own stream

    @abstractmethod
    def _encode(self, prompts: list[str]) -> Condition:
        """A few prompts."""

    def encode(self, prompts: Sequence[str]) -> Condition:
        """Prompts to embeddings, as the pipeline encodes them; overlong prompts are cut."""
        with torch.no_grad():
            starts = range(0, max(len(prompts), 1), AT_ONCE)
            parts = [self._encode(list(prompts[start : start + AT_ONCE])) for start in starts]
        return replace(joined(parts), texts=tuple(prompts))

    def text_inputs(self, cond: Condition) -> Tensor:
        """None: text and picture share attention.

        Raises:
            NotApplicable: Always.
        """
        raise self._joint()

    def text_projections(self, reach: Reach = "all") -> Mapping[str, nn.Linear]:
        """None: text and picture share attention.

        Raises:
            NotApplicable: Always.
        """
        raise self._joint()

    def text_stream_values(self, reach: Reach = "all") -> dict[str, nn.Linear]:
        """Value projections of the text's own stream; `down-mid` is the first half of them.

        Raises:
            NotApplicable: Text and picture share all of them.
        """
        layers = first_half(linear_layers(self.denoiser, *self.stream), reach)
        if not layers:
            raise NotApplicable("text and picture share their value projections: the text has no stream of its own")
        return layers

    def _joint(self) -> NotApplicable:
        return NotApplicable("text and picture share attention: no layer reads the text alone")

    def feed_forwards(self) -> dict[str, nn.Linear]:
        """The second linear layers of the feed-forwards of both streams.

        Raises:
            NotApplicable: There is none.
        """
        layers = linear_layers(self.denoiser, *self.feeds)
        if not layers:
            raise NotApplicable(f"{type(self.denoiser).__name__} has no feed-forward of linear layers")
        return layers


class FlowModel(TransformerModel):
    """A rectified flow: x = (1 − σ)·x0 + σ·ε with σ = t / T, and the network predicts ε − x0."""

    def _prepare(self) -> None:
        require_flow_schedule(self.pipe.scheduler)
        self.levels = RectifiedFlow(self.pipe.scheduler.config.num_train_timesteps)

    @property
    def kind(self) -> Parameterisation:
        """A flow's velocity."""
        return "flow"


class EvenFlowModel(FlowModel):
    """A flow whose pipeline names evenly spaced noise levels itself, and shifts them by the size."""

    def _prepare(self) -> None:
        super()._prepare()
        scheduler = type(self.pipe.scheduler).__name__
        if scheduler != "FlowMatchEulerDiscreteScheduler":
            raise NotApplicable(f"{scheduler} does not take the noise levels that this pipeline names")

    def schedule(self, steps: int) -> SchedulerRun:
        """A private copy of the pipeline's scheduler."""
        return SchedulerRun(self.pipe.scheduler, steps, self.device, self._settings(steps), begin=True)

    def _settings(self, steps: int) -> dict[str, Any]:
        return {"sigmas": self._levels(steps), "mu": self._shift(steps)}

    def _levels(self, steps: int) -> Any:
        return np.linspace(1.0, 1 / steps, steps)

    def _shift(self, steps: int) -> float:
        _, height, width = self._latent_shape
        return shift(height // 2 * (width // 2), self.pipe.scheduler.config, highest=1.15)


class SD3Model(FlowModel):
    """A `StableDiffusion3Pipeline`: two CLIP encoders side by side, T5 behind them, and a pooled vector.

    Without T5 its positions hold zeros, as in the pipeline.
    """

    guidance = 7.0
    steps = 28
    pooled = True
    dispensable = ("text_encoder_3", "tokenizer_3")

    def _encode(self, prompts: list[str]) -> Condition:
        embeds, _, pooled, _ = self.pipe.encode_prompt(
            prompts, None, None, device=self.device, do_classifier_free_guidance=False
        )
        mask = torch.cat([read(*reader, prompts).attention_mask for reader in self._readers], dim=1)
        missing = embeds.shape[1] - mask.shape[1]  # T5's, where there is none
        return Condition(embeds, mask=pad(mask, (0, missing)).to(self.device), pooled=pooled)

    def spans(self, prompt: str) -> list[tuple[int, int]]:
        """The characters behind each position: those of CLIP's tokens, then those of T5's."""
        spans = []
        for reader in self._readers:
            spans += spans_of(*reader, prompt)
        positions = self.pipe.tokenizer_max_length + T5_TOKENS
        return spans + [(0, 0)] * (positions - len(spans))

    @property
    def _readers(self) -> list[tuple[Any, int]]:
        clip, t5 = (self.pipe.tokenizer, self.pipe.tokenizer_max_length), (self.pipe.tokenizer_3, T5_TOKENS)
        return [clip] if self.pipe.text_encoder_3 is None else [clip, t5]

    def denoise(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """The transformer's output."""
        call = {"hidden_states": x, "timestep": t.expand(len(x))}
        output: Tensor = self.denoiser(**self.with_text(call, cond), return_dict=False)[0]
        return output

    def with_text(self, call: Mapping[str, Any], cond: Condition) -> dict[str, Any]:
        """Other embeddings and pooled vectors."""
        return super().with_text(call, cond) | {"pooled_projections": cond.pooled}

    def schedule(self, steps: int) -> SchedulerRun:
        """A private copy of the pipeline's scheduler, shifted by the size where it is set so."""
        config, settings = self.pipe.scheduler.config, dict[str, float]()
        if config.get("use_dynamic_shifting"):
            patch = self._config.patch_size
            tokens = (self._latent_shape[1] // patch) * (self._latent_shape[2] // patch)
            settings["mu"] = shift(tokens, config, highest=1.16)
        return SchedulerRun(self.pipe.scheduler, steps, self.device, settings)


def first_half(layers: dict[str, nn.Linear], reach: Reach) -> dict[str, nn.Linear]:
    """The layers of a reach: a transformer has no way down, `down-mid` is the first half of its layers."""
    count = len(layers) if reach == "all" else -(-len(layers) // 2)
    return dict(list(layers.items())[:count])


def shown(cond: Condition) -> Tensor:
    """The mask; where there is none all tokens count."""
    if cond.mask is not None:
        return cond.mask
    return torch.ones(cond.embeds.shape[:2], dtype=torch.long, device=cond.embeds.device)


def shift(tokens: int, config: Mapping[str, Any], highest: float) -> float:
    """How far noise levels are shifted for a picture of so many tokens; `highest` is the pipeline's own default."""
    few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", highest)
    slope = (high - low) / (many - few)
    mu: float = tokens * slope + (low - slope * few)
    return mu


def trimmed(cond: Condition) -> Condition:
    """As long as the longest prompt of these rows: what others of the batch were padded to is cut off."""
    if cond.mask is None:
        return cond
    longest = int(cond.mask.sum(1).max())
    return Condition(cond.embeds[:, :longest], mask=cond.mask[:, :longest], pooled=cond.pooled)


def read(tokenizer: Any, length: int, prompts: list[str], **settings: Any) -> Any:
    """Ids and mask of prompts, padded and cut to a length; settings are the tokenizer's."""
    return tokenizer(prompts, **_cut(length), **settings, return_tensors="pt")


def _cut(length: int | None) -> dict[str, Any]:
    return {} if length is None else {"padding": "max_length", "truncation": True, "max_length": length}


def tokenizer_of(given: Any) -> Any:
    """The tokenizer of a processor, which reads pictures too; a tokenizer is its own."""
    return getattr(given, "tokenizer", given)


def spans_of(
    tokenizer: Any, length: int | None, text: str, start: int = 0, stop: int | None = None, **settings: Any
) -> list[tuple[int, int]]:
    """The characters of text[start:stop] behind each token of the text, counted from `start`, white space left out.

    Without a length the text is neither padded nor cut. Tokens of what stands around them (a template) and special
    tokens have equal ends. Settings are the tokenizer's.
    """
    tokens = tokenizer(text, **_cut(length), **settings, return_offsets_mapping=True)
    spans = []
    for first, last in tokens.offset_mapping:
        first, last = max(first, start), min(last, len(text) if stop is None else stop)
        inside = text[first:last]
        first += len(inside) - len(inside.lstrip())
        last = first + len(inside.strip())
        spans.append((first - start, last - start) if last > first else (0, 0))
    return spans


def uncleaned(spans: list[tuple[int, int]], text: str, prompt: str) -> list[tuple[int, int]]:
    """Spans of the text that a pipeline cleaned a prompt to, in the prompt; none where cleaning changed its length."""
    if len(text) != len(prompt.strip()):
        return [(0, 0)] * len(spans)
    lead = len(prompt) - len(prompt.lstrip())
    return [(start + lead, stop + lead) if stop > start else (0, 0) for start, stop in spans]
