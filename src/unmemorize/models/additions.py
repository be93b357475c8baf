"""What people add to a model: LoRAs, merged into its weights, and textual inversions, added to its words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from unmemorize.core.errors import MissingExtra, UnmemorizeError, UserError
from unmemorize.models.source import header

_ADAPTER = "merged"
_DOWN = (".lora_down.weight", ".lora_A.weight", ".lora.down.weight", "_lora.down.weight")  # one a layer


def merge_lora(pipe: Any, file: Path, scale: float) -> None:
    """Merge a LoRA into the weights of a pipeline: every method then sees it, and it is saved with the model.

    Raises:
        MissingExtra: peft is not installed.
        UserError: The LoRA is for another model, is no numbers, or changes nothing.
    """
    if find_spec("peft") is None:
        raise MissingExtra("merging a LoRA", "train")
    if not hasattr(pipe, "load_lora_weights"):
        raise UserError(f"{file}: diffusers puts no LoRA on a {type(pipe).__name__}: merge it where it was made")
    with _failures(file, "LoRA"):
        pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=_ADAPTER)
        parts: list[str] = []
        layers: list[Any] = []
        for part in pipe._lora_loadable_modules:
            adapted = list(_layers(getattr(pipe, part, None)))
            if adapted:
                parts.append(part)
                layers += adapted
        named = sum(name.endswith(_DOWN) for name in header(file))
        if len(layers) < named:
            raise UserError(
                f"{file}: {named - len(layers)} of its {named} layers are not in this model: it is for another one"
            )
        if not all(layer.get_delta_weight(_ADAPTER).isfinite().all() for layer in layers):
            raise UserError(f"{file}: some of its weights are no numbers: download it again")
        if not any(_moves(layer, scale) for layer in layers):
            raise UserError(f"{file}: it changes no weight of this model at scale {scale:g}")
        pipe.fuse_lora(components=parts, lora_scale=scale, adapter_names=[_ADAPTER])
        pipe.unload_lora_weights()


def add_words(pipe: Any, file: Path) -> None:
    """Add a textual inversion: its word, of one vector or several, is then read by the tokenizer.

    The word is the tensor's name, or the file's where the tensor has none of its own.

    Raises:
        UserError: The vectors are no numbers or not of this model's width, or the word is one already.
    """
    if not hasattr(pipe, "load_textual_inversion"):
        raise UserError(f"{file}: {type(pipe).__name__} takes no textual inversions")
    tensors = load_file(file)
    if not all(vectors.isfinite().all() for vectors in tensors.values()):
        raise UserError(f"{file}: some of its vectors are no numbers: download it again")
    encoders = {"clip_l": "", "clip_g": "_2"}  # whose tensors are so called in files for two of them
    if len(tensors) > 1 and tensors.keys() != encoders.keys():
        raise UserError(f"{file}: {len(tensors)} words: name a file of one word's vectors")
    with _failures(file, "textual inversion"):
        for name, vectors in tensors.items():
            number = encoders.get(name, "")
            pipe.load_textual_inversion(
                vectors,
                token=file.stem if name in (*encoders, "emb_params") else name,
                tokenizer=getattr(pipe, f"tokenizer{number}"),
                text_encoder=getattr(pipe, f"text_encoder{number}"),
            )


def _layers(part: Any) -> Iterator[Any]:
    """The layers of a component that a LoRA was put on."""
    if isinstance(part, torch.nn.Module):
        for module in part.modules():
            if _ADAPTER in getattr(module, "lora_A", {}):
                yield module


def _moves(layer: Any, scale: float) -> bool:
    """Whether merging changes the layer's weight in its precision."""
    weight: Tensor = layer.base_layer.weight
    change: Tensor = scale * layer.get_delta_weight(_ADAPTER)
    return not torch.equal(weight + change.to(weight), weight)


@contextmanager
def _failures(file: Path, kind: str) -> Iterator[None]:
    try:
        yield
    except UnmemorizeError:
        raise
    except Exception as error:  # of a dozen kinds, by whichever library was reading
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = "its tensors have other shapes" if "size mismatch" in str(error) else lines[0]
        raise UserError(f"{file}: no {kind} for this model: {reason}") from error
