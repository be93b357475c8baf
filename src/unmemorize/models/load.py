"""Get a model: `wrap` a loaded pipeline, or `load` one by name, folder or hub id."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from unmemorize.core.errors import NotApplicable, UserError
from unmemorize.core.files import kind_of, require_plain
from unmemorize.models.pipeline import PipelineModel
from unmemorize.models.unet import SDXLModel, UNetModel

ADAPTERS: dict[str, type[PipelineModel]] = {
    "StableDiffusionPipeline": UNetModel,
    "StableDiffusionXLPipeline": SDXLModel,
}

ASSETS = Path(__file__).parent.parent / "testbed" / "assets"
EMBEDDED = ("testbed", "testbed-twin")
EMBEDDED_STEPS = 16  # sampling steps: their pictures are small


def wrap(
    pipe: DiffusionPipeline,
    *,
    name: str = "pipeline",
    source: Path | str | None = None,
    size: tuple[int, int] | None = None,
) -> PipelineModel:
    """Adapt a loaded pipeline, which stays where and what it is.

    Args:
        pipe: The pipeline.
        name: What it is called in records.
        source: The folder or hub id it was loaded from: components that were not loaded are kept when it is saved.
        size: Height and width of pictures in pixels; the family's own by default.

    Raises:
        NotApplicable: The pipeline's family has no adapter.
        UserError: Pictures of this size cannot be made.
    """
    own = type(pipe).__name__
    for kind in type(pipe).__mro__:
        if kind.__name__ in ADAPTERS and kind is not type(pipe):
            raise NotApplicable(
                f"{own} is a {kind.__name__} with a call of its own: pass {kind.__name__}(**pipe.components)"
            )
    if own not in ADAPTERS:
        raise NotApplicable(f"{own} has no adapter: pass one of {', '.join(ADAPTERS)}")
    return ADAPTERS[own](pipe, name, source, size)


def load(path: str, *, dtype: torch.dtype | None = None, device: str | None = None) -> PipelineModel:
    """Load a model.

    Args:
        path: `testbed`, `testbed-twin`, a local pipeline folder, or a hub id (the only case that uses the network).
        dtype: Half precision on a GPU and float32 on a CPU, by default.
        device: A GPU if there is one, by default.

    Raises:
        UserError: There is no pipeline there that diffusers can load from safetensors.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or (torch.float32 if device == "cpu" else torch.float16)
    pipe = _pipeline(path, dtype).to(device)
    if path in EMBEDDED:
        model = wrap(pipe, name=path)
        model.steps = EMBEDDED_STEPS
        return model
    return wrap(pipe, name=path, source=Path(path) if Path(path).is_dir() else path)


def _pipeline(path: str, dtype: torch.dtype) -> StableDiffusionPipeline:
    if path in EMBEDDED:
        pipe = _from_pretrained(str(ASSETS / "model"), dtype, path)
        if path == "testbed-twin":
            pipe.unet = UNet2DConditionModel.from_pretrained(ASSETS / "twin", torch_dtype=dtype, use_safetensors=True)
        return pipe
    _check_path(path)
    return _from_pretrained(path, dtype, path)


def _check_path(path: str) -> None:
    folder = Path(path)
    try:
        there = folder.exists()
    except OSError:  # a name longer than the file system takes
        there = False
    if not there:
        if path.count("/") == 1 and not path.startswith((".", "/", "~")):
            return  # a hub id
        raise UserError(f"{path}: no such folder: name a pipeline folder, a hub id (owner/name) or 'testbed'")
    if kind_of(folder) != "a folder":
        raise UserError(f"{path}: {kind_of(folder)}, not a folder: name a folder saved by pipe.save_pretrained(...)")
    for level in ("*", "*/*"):  # not "**/*", which does not look into folders that are links
        require_plain(folder, level)
    index = folder / "model_index.json"
    if not index.exists():
        raise UserError(f"{path}: no model_index.json: name a folder saved by pipe.save_pretrained(...)")
    # Without its files transformers makes up a tokenizer, which knows no word.
    missing = [part for part in ("tokenizer", "text_encoder", "unet", "vae") if not (folder / part).is_dir()]
    if missing:
        raise UserError(f"{path}: no folder {missing[0]} in it: save the whole pipeline with pipe.save_pretrained(...)")


def _from_pretrained(path: str, dtype: torch.dtype, name: str) -> StableDiffusionPipeline:
    quiet = {"safety_checker": None, "requires_safety_checker": False}
    try:
        with _silence():
            return StableDiffusionPipeline.from_pretrained(path, dtype=dtype, use_safetensors=True, **quiet)
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ImportError,
        RuntimeError,
        SafetensorError,
    ) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        hint = "" if Path(path).exists() or not os.environ.get("HF_HUB_OFFLINE") else " (the hub is switched off)"
        raise UserError(f"{name}: cannot be loaded as a Stable Diffusion pipeline{hint}: {reason}") from error


class _silence:
    """Hide the libraries' loading bars and notices, and put their settings back."""

    def __enter__(self) -> None:
        self._levels = diffusers_logging.get_verbosity(), transformers_logging.get_verbosity()
        self._bars = diffusers_logging.is_progress_bar_enabled(), transformers_logging.is_progress_bar_enabled()
        diffusers_logging.set_verbosity_error()
        transformers_logging.set_verbosity_error()
        diffusers_logging.disable_progress_bar()
        transformers_logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        diffusers_logging.set_verbosity(self._levels[0])
        transformers_logging.set_verbosity(self._levels[1])
        for library, shown in zip((diffusers_logging, transformers_logging), self._bars, strict=True):
            if shown:
                library.enable_progress_bar()
