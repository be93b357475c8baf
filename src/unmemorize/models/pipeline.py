"""What the adapters of all diffusers pipelines share."""

from __future__ import annotations

import itertools
import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from unmemorize.core.errors import NotApplicable, UserError
from unmemorize.core.model import (
    AttentionChange,
    Condition,
    Counted,
    Guided,
    Parameterisation,
    Prediction,
    Reach,
    TypedModel,
)
from unmemorize.core.run import digest, write_json
from unmemorize.models.layers import attention_layers, require_plain_layers
from unmemorize.models.schedules import RectifiedFlow, SchedulerRun, VariancePreserving

WEIGHTS = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".gguf", ".onnx", ".msgpack", ".h5")
LARGEST = 16_384  # pixels a side
ASIDE = ("safety_checker", "feature_extractor", "image_encoder")  # components that read pictures, not prompts


class Adapter(Counted, ABC):
    """What follows for every model from how it denoises: predictions, guidance, noisy latents.

    `apart`: guidance takes two calls of the denoiser, the conditional one first, instead of a stacked one.
    """

    name: str
    denoiser: nn.Module
    levels: VariancePreserving | RectifiedFlow
    guidance: float = 7.5
    steps: int = 50
    batch: int | None = None
    apart: bool = False

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

    def complete(self, cond: Condition) -> Condition:
        """With what the denoiser reads beside embeddings, where a condition leaves it out."""
        return cond

    def combine(self, uncond: Tensor, cond: Tensor, scale: float) -> Tensor:
        """What guidance makes of two outputs."""
        return uncond + scale * (cond - uncond)

    def attending(self, change: AttentionChange, reach: Reach = "all") -> AbstractContextManager[None]:
        """None, where no adapter gives it.

        Raises:
            NotApplicable: Always.
        """
        raise NotApplicable("this family's adapter gives no attention from picture to text")

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
        output = self.denoise(x, t, self.complete(cond))
        self.count_rows(output)
        return self.interpret(output, x, t)

    def guided(self, x: Tensor, t: Tensor, cond: Condition, uncond: Condition, scale: float) -> Guided:
        """As many calls as the pipeline makes: one stacked call, the unconditional half first, differs from two in the
        last bits.
        """
        if self.apart:
            conditional, unconditional = self.predict(x, t, cond), self.predict(x, t, uncond)
        else:
            count = len(x)
            both = self.predict(torch.cat([x, x]), t, self.complete(uncond).followed_by(self.complete(cond)))
            unconditional, conditional = both[:count], both[count:]
        return Guided(conditional, unconditional, self.combine(unconditional.output, conditional.output, scale))


class PipelineModel(Adapter, TypedModel):
    """A loaded diffusers pipeline as a `DiffusionModel`. The pipeline is shared, never moved or changed.

    The safety checker is not run: a blacked-out picture would look like a duplicate of every other.

    Args:
        pipe: The pipeline.
        name: What it was loaded as.
        source: The folder or hub id it was loaded from, if any: `save` takes from there what was not loaded.
        size: Height and width of pictures in pixels; the family's own by default.

    Raises:
        NotApplicable: The pipeline computes something that the adapter does not know of.
        UserError: Pictures of this size cannot be made.
    """

    part = "transformer"  # the component that denoises
    dispensable: tuple[str, ...] = ()  # components that the family also comes without
    pooled = False  # whether it reads a vector a prompt beside the embeddings
    in_rows = True  # whether the denoiser is given prompts in rows that do not depend on each other's length
    multiple = 8  # of which height and width have to be multiples
    upcasts = False  # whether a VAE that overflows in half precision computes in float32
    as_loaded = False  # whether all but the denoiser is still what the folder or hub model has
    revision: str | None = None  # of a hub model that is not its main branch

    def __init__(
        self, pipe: Any, name: str, source: Path | str | None = None, size: tuple[int, int] | None = None
    ) -> None:
        super().__init__()
        self.pipe, self.name, self._source = pipe, name, source
        for component, value in pipe.components.items():
            if value is None and component not in (*ASIDE, *self.dispensable):
                raise NotApplicable(f"this {type(pipe).__name__} has no {component}: load it with all its components")
        network = getattr(pipe, self.part)
        self.denoiser: nn.Module = getattr(network, "_orig_mod", network)  # compiled, it would ignore hooks
        if getattr(self.denoiser, "is_cache_enabled", False):
            raise NotApplicable(
                "a cache makes predictions depend on earlier ones: call disable_cache() on the denoiser"
            )
        self._config: Any = self.denoiser.config
        self._size = size or self._own_size()
        if any(not 0 < side <= LARGEST or side % self.multiple for side in self._size):
            height, width = self._size
            raise UserError(f"{height} × {width} pixels: name multiples of {self.multiple} up to {LARGEST}")
        self._prepare()
        self._empty_pooled: Tensor | None = None

    @abstractmethod
    def _prepare(self) -> None:
        """Refuse what the family's adapter does not know, and set `levels` and what is this pipeline's own."""

    @property
    def distilled(self) -> bool:
        """Whether guidance is built into the network, which has no unconditional branch of its own then."""
        return False

    def with_text(self, call: Mapping[str, Any], cond: Condition) -> dict[str, Any]:
        """The keyword arguments of a call of the denoiser, with these prompts in the place of its own."""
        return {**call, "encoder_hidden_states": cond.embeds}

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the pictures it makes, in pixels."""
        return self._size

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
        return digest(itertools.chain([schedule], self._weight_bytes()))

    @property
    def sizes(self) -> dict[str, int]:
        """The number of weights of each part that `fingerprint` hashes, the denoiser first."""
        return {name: sum(p.numel() for p in part.parameters()) for name, part in self._weights().items()}

    def _weights(self) -> Mapping[str, nn.Module]:
        networks: dict[str, nn.Module] = {"denoiser": self.denoiser}
        for name, component in sorted(self.pipe.components.items()):
            if isinstance(component, nn.Module) and name not in (self.part, *ASIDE):
                networks[name] = component
        return networks

    def _weight_bytes(self) -> Iterator[bytes]:
        """Every weight's name, then its value."""
        for part, module in self._weights().items():
            for name, tensor in sorted(module.state_dict().items()):
                yield f"{part}.{name}".encode()
                yield _bytes(tensor)

    def noise(self, generators: Sequence[torch.Generator]) -> Tensor:
        """One standard normal latent per generator."""
        shape = (len(generators), *self._latent_shape)
        latents: Tensor = randn_tensor(shape, generator=list(generators), device=self.device, dtype=self._latent_dtype)
        return latents

    def schedule(self, steps: int) -> SchedulerRun:
        """A private copy of the pipeline's scheduler."""
        return SchedulerRun(self.pipe.scheduler, steps, self.device)

    def decode(self, x: Tensor) -> Tensor:
        """Latents to images in [0, 1], as the pipeline decodes them."""
        self.count_decodes(len(x))
        with self._vae() as vae:
            images = vae.decode(self._unscaled(x.to(vae.dtype)), return_dict=False)[0]
        pictures: Tensor = self.pipe.image_processor.postprocess(images, output_type="pt")
        return pictures

    def invert(self, images: Tensor) -> Tensor:
        """Images in [0, 1] to the mode of their latents."""
        with self._vae() as vae:
            encoded = vae.encode((images * 2 - 1).to(self.device, vae.dtype))
        if hasattr(encoded, "latent_dist"):
            latents = encoded.latent_dist.mode()
        else:
            latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent  # of small, deep VAEs
        return self._scaled(latents).to(self._latent_dtype)

    @contextmanager
    def _vae(self) -> Iterator[Any]:
        vae = self.pipe.vae
        if not self.upcasts or vae.dtype != torch.float16 or not vae.config.force_upcast:
            yield vae
            return
        vae.to(dtype=torch.float32)  # and back, which loses nothing
        try:
            yield vae
        finally:
            vae.to(dtype=torch.float16)

    def _scaled(self, z: Tensor) -> Tensor:
        """The VAE's latents in the denoiser's scale."""
        scale, shift = self._vae_scale
        return (z - shift) * scale if shift else z * scale

    def _unscaled(self, x: Tensor) -> Tensor:
        scale, shift = self._vae_scale
        return x / scale + shift if shift else x / scale

    @property
    def _vae_scale(self) -> tuple[float, float | None]:
        config = self.pipe.vae.config
        return config.scaling_factor, getattr(config, "shift_factor", None)

    def complete(self, cond: Condition) -> Condition:
        """With the empty prompt's pooled vector, where the family reads one and the condition has none."""
        if not self.pooled or cond.pooled is not None:
            return cond
        if self._empty_pooled is None:
            self._empty_pooled = self.encode([""]).pooled
        assert self._empty_pooled is not None  # since `pooled` says so
        return replace(cond, pooled=self._empty_pooled.to(cond.embeds).expand(len(cond), -1))

    @property
    def vocabulary(self) -> list[str]:
        """None, where prompts are not read through CLIP alone.

        Raises:
            NotApplicable: Always.
        """
        raise self._untyped()

    @property
    def token_table(self) -> Tensor:
        """None, where prompts are not read through CLIP alone.

        Raises:
            NotApplicable: Always.
        """
        raise self._untyped()

    def encode_tokens(self, ids: Tensor, inputs: Tensor) -> Condition:
        """None, where prompts are not read through CLIP alone.

        Raises:
            NotApplicable: Always.
        """
        raise self._untyped()

    def _untyped(self) -> NotApplicable:
        return NotApplicable("prompts are read through other encoders than CLIP: there are no token inputs")

    @property
    def _latent_shape(self) -> tuple[int, int, int]:
        height, width = self._size
        scale: int = self.pipe.vae_scale_factor
        return self._config.in_channels, height // scale, width // scale

    @property
    def _latent_dtype(self) -> torch.dtype:
        network: Any = self.denoiser
        dtype: torch.dtype = network.dtype
        return dtype

    def _own_size(self) -> tuple[int, int]:
        """The size that pictures have if none is named."""
        scale = self.pipe.vae_scale_factor
        size = self._config.get("sample_size")
        if size is None:
            size = getattr(self.pipe, "default_sample_size", 1024 // scale)
        sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
        if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
            raise UserError(
                f"{self.name}: sample_size {size}: it should be a number of pixels, or two: download it again"
            )
        return sides[0] * scale, sides[1] * scale

    def text_stream_values(self, reach: Reach = "all") -> dict[str, nn.Linear]:
        """None, where cross-attention reads the text alone.

        Raises:
            NotApplicable: Always.
        """
        raise NotApplicable("cross-attention reads the text alone, which has no stream of its own: use nemo")

    def attention_layers(self) -> dict[str, nn.Linear]:
        """The linear layers of every attention, those of the text's stream included.

        Raises:
            NotApplicable: There is none.
        """
        return attention_layers(self.denoiser)

    def save(self, folder: Path) -> None:
        """Write the pipeline as `from_pretrained` reads it, with all that came with it.

        Of a folder that was loaded as it is every component but the denoiser is copied, and so are its other files,
        except weights, which would be the denoiser's as it was. Of other pipelines all components are written, and what
        loading left out is copied from where it came from.

        Raises:
            NotApplicable: A LoRA is on, or projections are fused: no such folder could be loaded; or weights are
                offloaded.
            UserError: It came from the hub, and what was left out is neither in the cache nor can be downloaded.
        """
        for network in self._weights().values():
            require_plain_layers(network)
            if any(tensor.is_meta for tensor in network.state_dict().values()):
                raise NotApplicable("some weights are offloaded, and cannot be written: load the model without")
        source = None if self._source is None else _downloaded(self._source, self.revision)
        if source is not None and self.as_loaded:
            denoiser: Any = self.denoiser
            denoiser.save_pretrained(folder / self.part)
        else:
            self.pipe.save_pretrained(folder)
        if source is not None:
            _carry_over(source, folder)
        forget_paths(folder)


def _downloaded(source: Path | str, revision: str | None) -> Path:
    """The folder of a pipeline; of a hub id the one in the cache, with every component."""
    if isinstance(source, Path):
        return source
    try:
        folder = Path(DiffusionPipeline.download(source, revision=revision))
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
    """Copy what `source` has and `folder` lacks: components such as the safety checker, licences, notes."""
    for file in source.iterdir():
        if file.is_dir() or file.name.startswith(".") or file.suffix in WEIGHTS:
            continue
        if not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)
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


def forget_paths(folder: Path) -> None:
    """Leave out of a saved pipeline the local folders that it was read from, which diffusers and transformers note."""
    for file in [*folder.glob("*.json"), *folder.glob("*/*.json")]:
        _forget_path(file)


def _forget_path(file: Path) -> None:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:  # not written by either
        return
    if not isinstance(config, dict):
        return
    local = [key for key in ("_name_or_path", "name_or_path") if _is_local(config.get(key))]
    if local:
        write_json(file, {key: value for key, value in config.items() if key not in local})


def _is_local(name: object) -> bool:
    return isinstance(name, str) and bool(name) and (name[0] in "./~\\" or name.count("/") > 1 or Path(name).exists())


def _bytes(tensor: Any) -> bytes:
    if tensor.is_meta:
        raise NotApplicable("some weights are offloaded, and cannot be read: load the model without")
    if hasattr(tensor, "__tensor_flatten__"):  # quantized by torchao: numbers and their scales
        return b"".join(_bytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    data: bytes = tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes()
    return data
