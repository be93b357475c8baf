"""What the adapters of all diffusers pipelines share."""

from __future__ import annotations

import itertools
import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from unmemorize.core.errors import UserError
from unmemorize.core.model import Condition, Counted, DiffusionModel, Guided, Parameterisation, Prediction
from unmemorize.core.run import digest, write_json
from unmemorize.models.schedules import RectifiedFlow, SchedulerRun, VariancePreserving


class Adapter(Counted, ABC):
    """What follows for every model from how it denoises: predictions, guidance in one call, noisy latents."""

    name: str
    denoiser: nn.Module
    levels: VariancePreserving | RectifiedFlow
    guidance: float = 7.5
    steps: int = 50

    @property
    @abstractmethod
    def kind(self) -> Parameterisation:
        """What the denoiser was trained to predict."""

    @abstractmethod
    def encode(self, prompts: Sequence[str]) -> Condition:
        """Prompts to conditions."""

    @abstractmethod
    def denoise(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """The denoiser's output, one call."""

    def unconditional(self, count: int) -> Condition:
        """The empty prompt."""
        return self.encode([""] * count)

    def timestep(self, u: Tensor) -> Tensor:
        """The timesteps at noise levels u in (0, 1)."""
        return self.levels.timestep(u)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """α and σ at timesteps."""
        return self.levels.alpha_sigma(t)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """α(t)·x0 + σ(t)·noise."""
        alpha, sigma = self.alpha_sigma(t)
        return alpha.to(x0) * x0 + sigma.to(x0) * noise

    def interpret(self, output: Tensor, x: Tensor, t: Tensor) -> Prediction:
        """What the denoiser's output for input `x` at `t` means."""
        alpha, sigma = self.alpha_sigma(t)
        return Prediction(output, self.kind, x, alpha.to(x), sigma.to(x))

    def predict(self, x: Tensor, t: Tensor, cond: Condition) -> Prediction:
        """Evaluate the denoiser once per row."""
        output = self.denoise(x, t, cond)
        self.count_rows(output)
        return self.interpret(output, x, t)

    def guided(self, x: Tensor, t: Tensor, cond: Condition, uncond: Condition, scale: float) -> Guided:
        """One stacked call, the unconditional half first: two calls differ from it in the last bits."""
        count = len(x)
        both = self.predict(torch.cat([x, x]), t, uncond.followed_by(cond))
        unconditional, conditional = both[:count], both[count:]
        output = unconditional.output + scale * (conditional.output - unconditional.output)
        return Guided(conditional, unconditional, output)


class PipelineModel(Adapter, DiffusionModel):
    """A loaded diffusers pipeline as a `DiffusionModel`. The pipeline is shared, never moved or changed.

    The safety checker is not run: a blacked-out picture would look like a duplicate of every other.

    Args:
        pipe: The pipeline.
        name: What it was loaded as.
        denoiser: The component that denoises.
        source: The folder or hub id it was loaded from, if any: `save` takes from there what was not loaded.
    """

    def __init__(self, pipe: Any, name: str, denoiser: nn.Module, source: Path | str | None = None) -> None:
        super().__init__()
        self.pipe, self.name, self.denoiser, self._source = pipe, name, denoiser, source
        self._config: Any = denoiser.config

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the pictures it makes, in pixels."""
        height, width = self._latent_size
        return height * self.pipe.vae_scale_factor, width * self.pipe.vae_scale_factor

    @property
    def device(self) -> torch.device:
        """Where the pipeline computes."""
        device: torch.device = self.pipe._execution_device
        return device

    @property
    def fingerprint(self) -> str:
        """A hash of the weights of denoiser, text encoders and VAE, and of the noise schedule."""
        # diffusers' own notes in a config start with an underscore: its version, and a list in an order of chance.
        settings = {k: v for k, v in self.pipe.scheduler.config.items() if not k.startswith("_")}
        schedule = json.dumps([type(self.pipe.scheduler).__name__, settings], sort_keys=True, default=str).encode()
        weights = itertools.chain.from_iterable(
            (f"{part}.{name}".encode(), _bytes(tensor))
            for part, module in self._weights().items()
            for name, tensor in sorted(module.state_dict().items())
        )
        return digest(itertools.chain([schedule], weights))

    def _weights(self) -> Mapping[str, nn.Module]:
        return {"denoiser": self.denoiser, "text_encoder": self.pipe.text_encoder, "vae": self.pipe.vae}

    def noise(self, generators: Sequence[torch.Generator]) -> Tensor:
        """One standard normal latent per generator."""
        shape = (len(generators), self._config.in_channels, *self._latent_size)
        latents: Tensor = randn_tensor(
            shape, generator=list(generators), device=self.device, dtype=next(self.denoiser.parameters()).dtype
        )
        return latents

    def schedule(self, steps: int) -> SchedulerRun:
        """A private copy of the pipeline's scheduler."""
        return SchedulerRun(self.pipe.scheduler, steps, self.device)

    def decode(self, x: Tensor) -> Tensor:
        """Latents to images in [0, 1], as the pipeline decodes them."""
        self.count_decodes(len(x))
        images = self.pipe.vae.decode(x / self.pipe.vae.config.scaling_factor, return_dict=False)[0]
        pictures: Tensor = self.pipe.image_processor.postprocess(images, output_type="pt")
        return pictures

    def invert(self, images: Tensor) -> Tensor:
        """Images in [0, 1] to the mode of their latents."""
        vae = self.pipe.vae
        pixels = (images * 2 - 1).to(vae.device, vae.dtype)
        latents: Tensor = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
        return latents

    def save(self, folder: Path) -> None:
        """Write the pipeline as `from_pretrained` reads it; what loading left out is copied from where it came from.

        Raises:
            UserError: It came from the hub, and what was left out is neither in the cache nor can be downloaded.
        """
        self.pipe.save_pretrained(folder)
        if self._source is not None:
            _carry_over(_downloaded(self._source), folder)

    @property
    def _latent_size(self) -> tuple[int, int]:
        size = self._config.sample_size
        return (size, size) if isinstance(size, int) else (size[0], size[1])


def _downloaded(source: Path | str) -> Path:
    """The folder of a pipeline; of a hub id the one in the cache, with every component."""
    if isinstance(source, Path):
        return source
    try:
        folder = Path(DiffusionPipeline.download(source))
        index: dict[str, Any] = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{source}: components that were not loaded cannot be downloaded: {reason}") from error
    missing = [part for part, entry in index.items() if _is_component(entry) and not (folder / part).is_dir()]
    if missing:
        raise UserError(f"{source}: its {missing[0]} is not in the cache: let it be downloaded, or name a folder")
    return folder


def _is_component(entry: object) -> bool:
    """Whether an entry of model_index.json stands for a folder: [library, class]."""
    return isinstance(entry, list) and len(entry) == 2 and entry[0] is not None


def _carry_over(source: Path, folder: Path) -> None:
    """Copy components that `source` has and `folder` lacks, such as the safety checker, and name them in its index."""
    index = folder / "model_index.json"
    saved: dict[str, Any] = json.loads(index.read_text(encoding="utf-8"))
    original: dict[str, Any] = json.loads((source / "model_index.json").read_text(encoding="utf-8"))
    for part, entry in original.items():
        if _is_component(entry) and not (folder / part).exists() and (source / part).is_dir():
            shutil.copytree(source / part, folder / part)
            saved[part] = entry
    if "requires_safety_checker" in original:
        saved["requires_safety_checker"] = original["requires_safety_checker"]
    write_json(index, saved)


def _bytes(tensor: Tensor) -> bytes:
    data: bytes = tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes()
    return data
