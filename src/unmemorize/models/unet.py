"""The adapter for Stable Diffusion 1 and 2: any loaded `StableDiffusionPipeline`."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence

import torch
from diffusers import SchedulerMixin, StableDiffusionPipeline
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from unmemorize.core.errors import NotApplicable
from unmemorize.core.hooks import patched
from unmemorize.core.model import Condition, Prediction


class UNetSchedule:
    """A private copy of a diffusers scheduler, set to a number of steps."""

    def __init__(self, scheduler: SchedulerMixin, steps: int, device: torch.device) -> None:
        self._scheduler = copy.deepcopy(scheduler)
        self._scheduler.set_timesteps(steps, device=device)
        self._takes_generator = "generator" in inspect.signature(scheduler.step).parameters
        self.timesteps: Tensor = self._scheduler.timesteps
        self.initial_scale = float(self._scheduler.init_noise_sigma)

    def scale(self, x: Tensor, t: Tensor) -> Tensor:
        """The UNet's input for the sampler's state `x`."""
        return self._scheduler.scale_model_input(x, t)

    def step(self, output: Tensor, t: Tensor, x: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """The sampler's next state; the generators feed schedulers that add noise."""
        extra = {"generator": list(generators)} if self._takes_generator else {}
        return self._scheduler.step(output, t, x, **extra, return_dict=False)[0]


class UNetModel:
    """A Stable Diffusion pipeline as a `DiffusionModel`. The pipeline is shared, never moved or changed.

    The safety checker is not run: a blacked-out picture would look like a duplicate of every other.
    """

    def __init__(self, pipe: StableDiffusionPipeline, name: str) -> None:
        config = pipe.unet.config
        if config.time_cond_proj_dim is not None:
            raise NotApplicable("a guidance-distilled UNet has no unconditional branch")
        if config.addition_embed_type is not None or config.in_channels != pipe.vae.config.latent_channels:
            raise NotApplicable("this UNet takes more than latents and text: pass a Stable Diffusion 1 or 2 pipeline")
        if not hasattr(pipe.scheduler, "alphas_cumprod"):
            raise NotApplicable(f"{type(pipe.scheduler).__name__} has no variance-preserving noise schedule")
        self.name = name
        self.pipe = pipe
        self.denoiser = pipe.unet
        self.evaluations = 0
        # σ/α over training timesteps; samplers such as Euler may visit fractional ones.
        alphas = pipe.scheduler.alphas_cumprod.to(torch.float64)
        self._ratio = ((1 - alphas) / alphas).sqrt()
        self.training_timesteps = len(alphas)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the pictures it makes, in pixels."""
        height, width = self._latent_size
        return height * self.pipe.vae_scale_factor, width * self.pipe.vae_scale_factor

    @property
    def device(self) -> torch.device:
        """Where the pipeline computes."""
        return self.pipe._execution_device

    def encode(self, prompts: Sequence[str]) -> Condition:
        """Prompts to embeddings, as the pipeline encodes them; overlong prompts are cut."""
        tokens = self.pipe.tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=self.pipe.tokenizer.model_max_length,
            return_tensors="pt",
        )
        with torch.no_grad():
            embeds, _ = self.pipe.encode_prompt(list(prompts), self.device, 1, do_classifier_free_guidance=False)
        return Condition(embeds, tokens.input_ids.to(self.device), tokens.attention_mask.to(self.device))

    def spans(self, prompt: str) -> list[tuple[int, int]]:
        """The characters of the prompt behind each token position, as the pipeline's tokenizer cut them."""
        longest = self.pipe.tokenizer.model_max_length
        how = {"padding": "max_length", "truncation": True, "max_length": longest, "return_offsets_mapping": True}
        return [tuple(pair) for pair in self.pipe.tokenizer(prompt, **how).offset_mapping]

    @property
    def vocabulary(self) -> list[str]:
        """The words that are one token of their own, in alphabetical order."""
        tokens = (t.removesuffix("</w>") for t in self.pipe.tokenizer.get_vocab() if t.endswith("</w>"))
        return sorted(t for t in tokens if len(t) > 2 and t.isascii() and t.isalpha())

    @property
    def token_table(self) -> Tensor:
        """What each token puts into the text encoder, before its position is added: (tokens, width)."""
        return self.pipe.text_encoder.get_input_embeddings().weight.detach()

    def encode_tokens(self, ids: Tensor, inputs: Tensor) -> Condition:
        """What `encode` gives for the prompt with these ids, with gradients to `inputs` = token_table[ids]."""
        encoder = self.pipe.text_encoder
        name = next(n for n, module in encoder.named_modules() if module is encoder.get_input_embeddings())
        with patched(encoder, {name: lambda _: inputs}):
            return Condition(encoder(ids)[0], ids)

    def noise(self, generators: Sequence[torch.Generator]) -> Tensor:
        """One standard normal latent per generator."""
        shape = (len(generators), self.denoiser.config.in_channels, *self._latent_size)
        return randn_tensor(shape, generator=list(generators), device=self.device, dtype=self.denoiser.dtype)

    def schedule(self, steps: int) -> UNetSchedule:
        """A private copy of the pipeline's scheduler."""
        return UNetSchedule(self.pipe.scheduler, steps, self.device)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """α(t)·x0 + σ(t)·noise."""
        alpha, sigma = self._alpha_sigma(t, x0)
        return alpha * x0 + sigma * noise

    def predict(self, x: Tensor, t: Tensor, cond: Condition) -> Prediction:
        """Evaluate the UNet once per row."""
        self.evaluations += len(x)
        return self.interpret(self.denoiser(x, t, encoder_hidden_states=cond.embeds, return_dict=False)[0], x, t)

    def interpret(self, output: Tensor, x: Tensor, t: Tensor) -> Prediction:
        """What the UNet's output for input `x` at `t` means."""
        return Prediction(output, self.pipe.scheduler.config.prediction_type, x, *self._alpha_sigma(t, x))

    def decode(self, x: Tensor) -> Tensor:
        """Latents to images in [0, 1], as the pipeline decodes them."""
        images = self.pipe.vae.decode(x / self.pipe.vae.config.scaling_factor, return_dict=False)[0]
        return self.pipe.image_processor.postprocess(images, output_type="pt")

    def invert(self, images: Tensor) -> Tensor:
        """Images in [0, 1] to the mode of their latents."""
        vae = self.pipe.vae
        pixels = (images * 2 - 1).to(vae.device, vae.dtype)
        return vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor

    @property
    def _latent_size(self) -> tuple[int, int]:
        size = self.denoiser.config.sample_size
        return (size, size) if isinstance(size, int) else tuple(size)

    def _alpha_sigma(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        position = t.to("cpu", torch.float64).clamp(0, len(self._ratio) - 1)
        low = position.floor().long()
        high = (low + 1).clamp(max=len(self._ratio) - 1)
        between = torch.lerp(self._ratio[low], self._ratio[high], position - low)
        ratio = torch.where(position == low, self._ratio[low], between)  # at zero terminal SNR it is infinite
        alpha = (1 + ratio.square()).rsqrt().reshape(-1, 1, 1, 1)
        sigma = (1 - alpha.square()).sqrt()
        return alpha.to(like), sigma.to(like)
