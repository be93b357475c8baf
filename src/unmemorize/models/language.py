"""The adapters for families whose prompts are read by a language model: Qwen-Image, Z-Image, Flux.2, Lumina-Image 2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu, format_input
from torch import Tensor, nn

from unmemorize.core.model import Condition, Guided
from unmemorize.models.flux import pack, unpack
from unmemorize.models.transformer import EvenFlowModel, read, shift, shown, spans_of, tokenizer_of, trimmed

TOKENS = 512
MARK = "\ufdd0"  # a character that no prompt holds: where it stands in a template the prompt goes


class QwenImageModel(EvenFlowModel):
    """A `QwenImagePipeline`: what stands before the prompt in its template is cut off; as long as the longest prompt.

    The guided output has the conditional one's norm, token by token. A plain `pipe(prompt)` is not guided: it takes a
    negative prompt, if an empty one, to be.
    """

    guidance = 4.0
    steps = 50
    apart = True
    feeds = ("img_mlp.net.2", "txt_mlp.net.2")

    def _encode(self, prompts: list[str]) -> Condition:
        embeds, mask = self.pipe.encode_prompt(prompts, device=self.device, max_sequence_length=TOKENS)
        return Condition(embeds, mask=mask)

    def spans(self, prompt: str) -> list[tuple[int, int]]:
        """The characters behind each token, the end of the template included."""
        before, after = self.pipe.prompt_template_encode.split("{}")
        text, cut = before + prompt + after, self.pipe.prompt_template_encode_start_idx
        spans = spans_of(self.pipe.tokenizer, None, text, start=len(before), stop=len(before + prompt))
        return spans[cut:][:TOKENS]

    def denoise(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """The transformer's output, as latents."""
        count, _, height, width = x.shape
        call = {
            "hidden_states": pack(x),
            "timestep": t.expand(count).to(x.dtype) / 1000,
            "img_shapes": [[(1, height // 2, width // 2)]] * count,
        }
        output = self.denoiser(**self.with_text(call, cond), return_dict=False)[0]
        return unpack(output, height, width)

    def with_text(self, call: Mapping[str, Any], cond: Condition) -> dict[str, Any]:
        """Other embeddings, as long as the longest, with their mask."""
        cond = trimmed(cond)
        mask = None if shown(cond).all() else shown(cond)  # as the pipeline: another path of attention
        return super().with_text(call, cond) | {"encoder_hidden_states_mask": mask}

    def feed_forwards(self) -> dict[str, nn.Linear]:
        """The second linear layers of both streams; what the last block makes of the text is not used.

        Raises:
            NotApplicable: The transformer takes no hooks.
        """
        unused = f"transformer_blocks.{self._config.num_layers - 1}.txt_mlp.net.2"
        return {name: layer for name, layer in super().feed_forwards().items() if name != unused}

    def combine(self, uncond: Tensor, cond: Tensor, scale: float) -> Tensor:
        """Guidance, brought back to the norm of the conditional output."""
        height, width = cond.shape[-2:]
        tokens = pack(cond)
        guided = super().combine(pack(uncond), tokens, scale)
        return unpack(guided * (tokens.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True)), height, width)

    def decode(self, x: Tensor) -> Tensor:
        """Latents to images in [0, 1]; the VAE is one of videos, and a picture a video of one frame."""
        self.count_decodes(len(x))
        images = self.pipe.vae.decode(self._unscaled(x)[:, :, None], return_dict=False)[0][:, :, 0]
        pictures: Tensor = self.pipe.image_processor.postprocess(images, output_type="pt")
        return pictures

    def invert(self, images: Tensor) -> Tensor:
        """Images in [0, 1] to the mode of their latents."""
        vae = self.pipe.vae
        frames = (images * 2 - 1).to(self.device, vae.dtype)[:, :, None]
        return self._scaled(vae.encode(frames).latent_dist.mode()[:, :, 0])

    def _scaled(self, z: Tensor) -> Tensor:
        mean, inverse = self._statistics(z)
        return (z - mean) * inverse

    def _unscaled(self, x: Tensor) -> Tensor:
        mean, inverse = self._statistics(x.to(self.pipe.vae.dtype))
        return x.to(inverse) / inverse + mean

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and inverse standard deviation by channel; the inverse, as the pipeline divides by it."""
        config = self.pipe.vae.config
        mean = torch.tensor(config.latents_mean).view(1, -1, 1, 1)
        std = torch.tensor(config.latents_std).view(1, -1, 1, 1)
        return mean.to(like), (1.0 / std).to(like)

    @property
    def _latent_shape(self) -> tuple[int, int, int]:
        channels, height, width = super()._latent_shape
        return channels // 4, height, width


def as_chat(tokenizer: Any, prompt: str, *, thinking: bool) -> str:
    """The prompt as a user's message in a language model's template, before the answer."""
    text: str = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, enable_thinking=thinking
    )
    return text


class ZImageModel(EvenFlowModel):
    """A `ZImagePipeline`: prompts without padding, in lists; time runs upwards, and the output is x0 − ε.

    Its guidance is u + s (c − u) with s one more than the pipeline's `guidance_scale`, which adds to the conditional.
    """

    guidance = 6.0
    steps = 50
    in_rows = False
    feeds = ("feed_forward.w2",)
    stream = ("context_refiner.*.attention.to_v",)

    def _encode(self, prompts: list[str]) -> Condition:
        rows, _ = self.pipe.encode_prompt(prompts, device=self.device, do_classifier_free_guidance=False)
        embeds = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows], device=embeds.device)
        places = torch.arange(embeds.shape[1], device=embeds.device)
        return Condition(embeds, mask=(places < lengths[:, None]).long())

    def spans(self, prompt: str) -> list[tuple[int, int]]:
        """The characters behind each token, those of the template included."""
        before = self._chat(MARK).index(MARK)
        spans = spans_of(self.pipe.tokenizer, None, self._chat(prompt), start=before, stop=before + len(prompt))
        return spans[:TOKENS]

    def _chat(self, prompt: str) -> str:
        return as_chat(self.pipe.tokenizer, prompt, thinking=True)

    def denoise(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """The velocity, in float32."""
        network: Any = self.denoiser
        mask = shown(cond).bool()
        texts = [embeds[row] for embeds, row in zip(cond.embeds, mask, strict=True)]
        pictures = list(x.to(network.dtype).unsqueeze(2).unbind())
        output = network(pictures, (1000 - t.expand(len(x))) / 1000, texts, return_dict=False)[0]
        return -torch.stack([row.float() for row in output]).squeeze(2)

    def guided(self, x: Tensor, t: Tensor, cond: Condition, uncond: Condition, scale: float) -> Guided:
        """One stacked call, the conditional half first."""
        count = len(x)
        both = self.predict(torch.cat([x, x]), t, cond.followed_by(uncond))
        conditional, unconditional = both[:count], both[count:]
        return Guided(conditional, unconditional, self.combine(unconditional.output, conditional.output, scale))

    def combine(self, uncond: Tensor, cond: Tensor, scale: float) -> Tensor:
        """Guidance from the conditional side, which differs in the last bits."""
        return cond + (scale - 1) * (cond - uncond)

    def _levels(self, steps: int) -> list[float]:
        levels: list[float] = torch.linspace(1.0, 1 / steps, steps).tolist()
        return levels

    @property
    def _latent_dtype(self) -> torch.dtype:
        return torch.float32


class Flux2KleinModel(EvenFlowModel):
    """A `Flux2KleinPipeline`: layers of Qwen 3 side by side; latents are patches of 2 × 2 in the VAE's own norm."""

    guidance = 4.0
    steps = 50
    apart = True
    feeds = ("ff.linear_out", "ff_context.linear_out")
    embedded: float | None = None  # guidance as an input of the network

    def _prepare(self) -> None:
        super()._prepare()
        if self.distilled:
            self.guidance, self.steps = 1.0, 4

    def _encode(self, prompts: list[str]) -> Condition:
        embeds, _ = self.pipe.encode_prompt(prompts, device=self.device)
        chats = [self._chat(prompt) for prompt in prompts]
        tokens = read(self._tokenizer, TOKENS, chats, add_special_tokens=False).to(self.device)
        return Condition(embeds, tokens.input_ids, tokens.attention_mask)

    def spans(self, prompt: str) -> list[tuple[int, int]]:
        """The characters behind each token."""
        before, chat = self._chat(MARK).index(MARK), self._chat(prompt)
        stop = before + len(prompt)
        return spans_of(self._tokenizer, TOKENS, chat, start=before, stop=stop, add_special_tokens=False)

    @property
    def _tokenizer(self) -> Any:
        return self.pipe.tokenizer

    def _chat(self, prompt: str) -> str:
        return as_chat(self.pipe.tokenizer, prompt, thinking=False)

    def denoise(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """The transformer's output, as latents."""
        network: Any = self.denoiser
        count, channels, height, width = x.shape
        guidance = None
        if self.embedded is not None:
            guidance = torch.full([count], self.embedded, dtype=torch.float32, device=x.device)
        call = {
            "hidden_states": x.flatten(2).transpose(1, 2).to(network.dtype),
            "timestep": t.expand(count).to(x.dtype) / 1000,
            "guidance": guidance,
            "img_ids": self.pipe._prepare_latent_ids(x).to(x.device),
        }
        output = network(**self.with_text(call, cond), return_dict=False)[0]
        latents: Tensor = output.transpose(1, 2).reshape(count, channels, height, width)
        return latents

    @property
    def distilled(self) -> bool:
        """Of the distilled models: klein's, and dev."""
        return self.embedded is not None or bool(self.pipe.config.is_distilled)

    def with_text(self, call: Mapping[str, Any], cond: Condition) -> dict[str, Any]:
        """Other embeddings with the places of their tokens."""
        places = self.pipe._prepare_text_ids(cond.embeds).to(cond.embeds.device)
        return super().with_text(call, cond) | {"txt_ids": places}

    def _shift(self, steps: int) -> float:
        _, height, width = self._latent_shape
        mu: float = compute_empirical_mu(image_seq_len=height * width, num_steps=steps)  # depends on the steps, too
        return mu

    def _scaled(self, z: Tensor) -> Tensor:
        patches: Tensor = self.pipe._patchify_latents(z)
        mean, std = self._statistics(patches)
        return (patches - mean) / std

    def _unscaled(self, x: Tensor) -> Tensor:
        mean, std = self._statistics(x)
        latents: Tensor = self.pipe._unpatchify_latents(x * std + mean)
        return latents

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation by channel of the patches."""
        vae = self.pipe.vae
        mean = vae.bn.running_mean.view(1, -1, 1, 1)
        variance = vae.bn.running_var.view(1, -1, 1, 1)
        return mean.to(like), torch.sqrt(variance + vae.config.batch_norm_eps).to(like)

    @property
    def _latent_shape(self) -> tuple[int, int, int]:
        channels, height, width = super()._latent_shape
        return channels, height // 2, width // 2


class Flux2Model(Flux2KleinModel):
    """A `Flux2Pipeline`, the dev model: layers of Mistral 3 side by side, behind a system message.

    As Flux.1 dev it is distilled: its guidance is `embedded`, and `guidance` above 1, which its own pipeline has no
    argument for, is classifier-free guidance on top.
    """

    guidance = 1.0
    embedded = 4.0

    def _prepare(self) -> None:
        EvenFlowModel._prepare(self)

    @property
    def _tokenizer(self) -> Any:
        return tokenizer_of(self.pipe.tokenizer)

    def _chat(self, prompt: str) -> str:
        messages = format_input([prompt], system_message=self.pipe.system_message)
        (chat,) = self.pipe.tokenizer.apply_chat_template(messages, add_generation_prompt=False, tokenize=False)
        return str(chat)


class Lumina2Model(EvenFlowModel):
    """A `Lumina2Pipeline`: Gemma 2's tokens behind a system prompt; time runs upwards, and the output is x0 − ε.

    The guided output has the conditional one's norm, row by row of the picture.
    """

    guidance = 4.0
    steps = 30
    apart = True
    feeds = ("feed_forward.linear_2",)
    stream = ("context_refiner.*.attn.to_v",)

    def _encode(self, prompts: list[str]) -> Condition:
        embeds, mask, *_ = self.pipe.encode_prompt(prompts, do_classifier_free_guidance=False, device=self.device)
        return Condition(embeds, mask=mask)

    def unconditional(self, count: int) -> Condition:
        """The empty prompt without the system prompt."""
        with torch.no_grad():
            embeds, mask = self.pipe._get_gemma_prompt_embeds([""] * count, device=self.device)
        return Condition(embeds, mask=mask)

    def spans(self, prompt: str) -> list[tuple[int, int]]:
        """The characters behind each token; the system prompt takes half of the positions."""
        before = f"{self.pipe.system_prompt} <Prompt Start> "
        return spans_of(self.pipe.tokenizer, 256, before + prompt, start=len(before))

    def denoise(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """The velocity."""
        call = {
            "hidden_states": x,
            "timestep": (1 - t / self.pipe.scheduler.config.num_train_timesteps).expand(len(x)),
        }
        output: Tensor = self.denoiser(**self.with_text(call, cond), return_dict=False)[0]
        return -output

    def with_text(self, call: Mapping[str, Any], cond: Condition) -> dict[str, Any]:
        """Other embeddings with their mask."""
        return super().with_text(call, cond) | {"encoder_attention_mask": shown(cond)}

    def combine(self, uncond: Tensor, cond: Tensor, scale: float) -> Tensor:
        """Guidance, brought back to the norm of the conditional output."""
        guided = super().combine(uncond, cond, scale)
        rescaled: Tensor = guided * (cond.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))
        return rescaled

    def _shift(self, steps: int) -> float:
        # The pipeline reads the number of channels where it means that of tokens.
        return shift(self._latent_shape[0], self.pipe.scheduler.config, highest=1.15)
