"""The adapters for AuraFlow, CogView4 and Kandinsky 5: no mask covers padding, which takes part in attention."""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.kandinsky5.pipeline_kandinsky_t2i import prompt_clean
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from unmemorize.core.errors import NotApplicable
from unmemorize.core.model import Condition, joined
from unmemorize.models.schedules import RectifiedFlow, SchedulerRun
from unmemorize.models.transformer import (
    EvenFlowModel,
    FlowModel,
    read,
    shown,
    spans_of,
    tokenizer_of,
    trimmed,
    uncleaned,
)

AURA_TOKENS = 256
KANDINSKY_TOKENS = 512
GLM_TOKENS = 1024
GLM_MULTIPLE = 16  # of which the number of CogView4's tokens is a multiple
OTHER_LEVELS = ("shift_terminal", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")


class AuraFlowModel(FlowModel):
    """An `AuraFlowPipeline`: Pile-T5's tokens, with zeros where a prompt is padded."""

    guidance = 3.5
    steps = 50
    upcasts = True
    feeds = ("ff.out_projection", "ff_context.out_projection")

    def _encode(self, prompts: list[str]) -> Condition:
        embeds, mask, *_ = self.pipe.encode_prompt(prompts, do_classifier_free_guidance=False, device=self.device)
        ids = read(self.pipe.tokenizer, AURA_TOKENS, prompts).input_ids.to(self.device)
        return Condition(embeds, ids, mask.unflatten(1, (embeds.shape[1], -1))[..., 0])

    def spans(self, prompt: str) -> list[tuple[int, int]]:
        """The characters behind each of Pile-T5's tokens."""
        return spans_of(self.pipe.tokenizer, AURA_TOKENS, prompt)

    def denoise(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """The transformer's output."""
        time = (t / 1000).expand(len(x)).to(x.device, x.dtype)
        output: Tensor = self.denoiser(x, encoder_hidden_states=cond.embeds, timestep=time, return_dict=False)[0]
        return output

    def schedule(self, steps: int) -> SchedulerRun:
        """A private copy of the pipeline's scheduler."""
        return SchedulerRun(self.pipe.scheduler, steps, self.device, begin=True)

    def _own_size(self) -> tuple[int, int]:
        return 1024, 1024


class UnpaddedModel(FlowModel):
    """A flow whose network is given prompts of one length alone; those of other lengths are evaluated in other calls.

    A pipeline pads all prompts of a call to the longest, so that a prompt's picture depends on the others. Here it is
    what it is alone, or beside prompts of its length.
    """

    apart = True
    in_rows = False

    @abstractmethod
    def _denoise(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """The output for prompts of one length, of which `cond` has no padding; `t` is (n,)."""

    def denoise(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """The transformer's output, a call for each length of prompt."""
        lengths, times = shown(cond).sum(1), t.expand(len(x))
        groups = [(lengths == length).nonzero()[:, 0] for length in lengths.unique()]
        outputs = [self._denoise(x[rows], times[rows], trimmed(cond[rows])) for rows in groups]
        return torch.cat(outputs)[torch.cat(groups).argsort()]


class CogView4Model(UnpaddedModel, EvenFlowModel):
    """A `CogView4Pipeline`: GLM's tokens, padded on the left to a multiple of 16 by tokens that count.

    The network is told a timestep t whose noise level is shifted by the size: σ = s·τ / (1 + (s − 1)·τ), τ = t / T.
    """

    guidance = 5.0
    steps = 50
    feeds = ("ff.net.2",)

    def _prepare(self) -> None:
        super()._prepare()
        config = self.pipe.scheduler.config
        if any(config.get(name) for name in OTHER_LEVELS):
            raise NotApplicable("the noise levels of this scheduler are not those of its timesteps")
        shift = self._shift(1) if config.use_dynamic_shifting else config.shift
        if config.use_dynamic_shifting and config.time_shift_type == "exponential":
            shift = math.exp(shift)
        self.levels = RectifiedFlow(config.num_train_timesteps, shift)

    def _encode(self, prompts: list[str]) -> Condition:
        """Each with those that need as many tokens."""
        by_length: dict[int, list[int]] = {}
        for row, prompt in enumerate(prompts):
            by_length.setdefault(len(self.spans(prompt)), []).append(row)
        parts = []
        for rows in by_length.values():
            embeds, _ = self.pipe.encode_prompt(
                [prompts[row] for row in rows], do_classifier_free_guidance=False, device=self.device
            )
            parts.append(Condition(embeds))
        order = torch.tensor([*itertools.chain.from_iterable(by_length.values())]).argsort()
        return joined(parts)[order]

    def spans(self, prompt: str) -> list[tuple[int, int]]:
        """The characters behind each token, padding first."""
        spans = spans_of(self.pipe.tokenizer, None, prompt)[:GLM_TOKENS]
        return [(0, 0)] * (-len(spans) % GLM_MULTIPLE) + spans

    def _denoise(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        sizes = torch.tensor([self.image_size], dtype=cond.embeds.dtype, device=x.device).repeat(len(x), 1)
        network: Any = self.denoiser
        output: Tensor = network(
            hidden_states=x.to(network.dtype),
            encoder_hidden_states=cond.embeds,
            timestep=t,
            original_size=sizes,
            target_size=sizes,
            crop_coords=torch.zeros_like(sizes),
            return_dict=False,
        )[0]
        return output

    def _settings(self, steps: int) -> dict[str, Any]:
        total = self.pipe.scheduler.config.num_train_timesteps
        timesteps = np.linspace(total, 1.0, steps).astype(np.int64).astype(np.float32)
        return {"timesteps": timesteps, "sigmas": timesteps / total, "mu": self._shift(steps)}

    def _shift(self, steps: int) -> float:
        config, (_, height, width) = self.pipe.scheduler.config, self._latent_shape
        tokens = height * width // self._config.patch_size**2
        relative: float = (tokens / config.get("base_image_seq_len", 256)) ** 0.5
        mu: float = relative * config.get("max_shift", 0.75) + config.get("base_shift", 0.25)
        return mu

    @property
    def _latent_dtype(self) -> torch.dtype:
        return torch.float32


class Kandinsky5Model(UnpaddedModel):
    """A `Kandinsky5T2IPipeline`: Qwen 2.5-VL's tokens behind a template that is cut off, and a pooled CLIP vector."""

    guidance = 3.5
    steps = 50
    pooled = True
    feeds = ("feed_forward.out_layer",)
    stream = ("cross_attention.to_value",)

    def _encode(self, prompts: list[str]) -> Condition:
        network: Any = self.denoiser
        embeds, pooled, ends = self.pipe.encode_prompt(prompts, device=self.device, dtype=network.dtype)
        places = torch.arange(embeds.shape[1], device=embeds.device)
        return Condition(embeds, mask=(places < ends.diff()[:, None]).long(), pooled=pooled)

    def spans(self, prompt: str) -> list[tuple[int, int]]:
        """The characters behind each token, the end of the template included; none where cleaning changed a prompt."""
        before, after = self.pipe.prompt_template.split("{}")
        text, cut = prompt_clean(prompt), self.pipe.prompt_template_encode_start_idx
        tokenizer, chat = tokenizer_of(self.pipe.tokenizer), before + text + after
        spans = spans_of(tokenizer, None, chat, start=len(before), stop=len(before + text))
        return uncleaned(spans[cut:][:KANDINSKY_TOKENS], text, prompt)

    def noise(self, generators: Sequence[torch.Generator]) -> Tensor:
        """One standard normal latent per generator, drawn with the channels last."""
        channels, height, width = self._latent_shape
        shape = (len(generators), height, width, channels)
        drawn: Tensor = randn_tensor(shape, generator=list(generators), device=self.device, dtype=self._latent_dtype)
        return drawn.permute(0, 3, 1, 2).contiguous()

    def _denoise(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        network: Any = self.denoiser
        height, width = x.shape[-2:]
        output: Tensor = network(
            hidden_states=x.permute(0, 2, 3, 1)[:, None].contiguous().to(network.dtype),
            encoder_hidden_states=cond.embeds.to(network.dtype),
            pooled_projections=None if cond.pooled is None else cond.pooled.to(network.dtype),
            timestep=t.to(network.dtype),
            visual_rope_pos=[torch.arange(size, device=x.device) for size in (1, height // 2, width // 2)],
            text_rope_pos=torch.arange(cond.embeds.shape[1], device=x.device),
        ).sample
        return output[:, 0].permute(0, 3, 1, 2).contiguous()

    def _joint(self) -> NotApplicable:
        return NotApplicable("the text is changed by the timestep first: no layer reads the text alone")

    def _unscaled(self, x: Tensor) -> Tensor:
        # By the pipeline's own detour: with other strides the VAE gives other last bits.
        frames = x.permute(0, 2, 3, 1).contiguous()[:, None, None]
        return super()._unscaled(frames.permute(0, 1, 5, 2, 3, 4).reshape(x.shape))

    @property
    def _latent_shape(self) -> tuple[int, int, int]:
        height, width = self._size
        scale: int = self.pipe.vae_scale_factor_spatial
        return self._config.in_visual_dim, height // scale, width // scale

    def _own_size(self) -> tuple[int, int]:
        return 1024, 1024
