"""Get a model: `wrap` a loaded pipeline, or `load` one by name, folder, file or hub id."""

from __future__ import annotations

import copy
import importlib
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unmemorize.core.errors import NotApplicable, UnmemorizeError, UserError
from unmemorize.core.specs import EMBEDDED
from unmemorize.models.configs import configuration
from unmemorize.models.source import (
    ADAPTERS,
    ASSETS,
    DENOISERS,
    SHIPPED,
    TWICE,
    Source,
    embedding_file,
    examine,
    lora_file,
    nulls,
    require_adapter,
)

__all__ = ["ASSETS", "EMBEDDED", "SHIPPED", "load", "wrap"]

if TYPE_CHECKING:  # torch and diffusers take seconds to import: what a folder is, is said before
    import torch
    from diffusers import DiffusionPipeline

    from unmemorize.models.pipeline import PipelineModel

SMALL = 64  # pixels a side of the picture that is made to try a model
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
    for kind in type(pipe).__mro__[1:]:
        if kind.__name__ in ADAPTERS:
            raise NotApplicable(
                f"{own} may compute something else than {kind.__name__}: pass {kind.__name__}(**pipe.components)"
            )
    if own not in ADAPTERS:
        raise NotApplicable(f"{own} has no adapter: pass one of {', '.join(ADAPTERS)}")
    module, adapter = ADAPTERS[own].split(":")
    model: PipelineModel = getattr(importlib.import_module(module), adapter)(pipe, name, source, size)
    return model


def load(  # noqa: PLR0913 - all but the name are optional
    path: str,
    *,
    device: str | None = None,
    dtype: torch.dtype | str | None = None,
    variant: str | None = None,
    revision: str | None = None,
    offload: Literal["model", "group"] | None = None,
    config: str | None = None,
    lora: Sequence[str] = (),
    embedding: Sequence[str] = (),
    size: tuple[int, int] | None = None,
) -> PipelineModel:
    """Load a model.

    Args:
        path: A shipped model (one of `EMBEDDED`), a pipeline folder, a single-file checkpoint (`.safetensors`), or a
            hub id (the only case that uses the network).
        device: A GPU if there is one, by default.
        dtype: Half precision on a GPU and float32 on a CPU, by default.
        variant: The variant of a folder's weights, such as `fp16`; by default what is there.
        revision: The branch, tag or commit of a hub model.
        offload: What waits on the CPU while another part computes: `model` for whole components, `group` for layers.
        config: For a single file, a folder of its family: configuration and tokenizers are taken from there.
        lora: LoRA files or folders, merged into the weights; `FILE:0.7` scales one.
        embedding: Textual inversions, whose words are added to the tokenizer.
        size: Height and width of pictures in pixels; the family's own by default.

    Raises:
        NotApplicable: The pipeline's family has no adapter.
        UserError: There is nothing whole to be loaded without opening pickles, what is added is for another model, or
            there is no device to offload from.
    """
    source = examine(path, variant=variant, revision=revision)
    lora = [lora] if isinstance(lora, str) else lora
    embedding = [embedding] if isinstance(embedding, str) else embedding
    loras = [lora_file(given) for given in lora]
    embeddings = [embedding_file(given) for given in embedding]
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    half_or_whole = torch.float32 if device == "cpu" else torch.float16
    pipe = _pipeline(source, _dtype(dtype) if dtype else half_or_whole, config)
    _add(pipe, loras, embeddings)
    _require_weights(pipe, path)
    place(pipe, torch.device(device), offload)
    model = wrap(pipe, name=" + ".join([path, *lora, *embedding]), source=_origin(source), size=size)
    model.revision = revision
    model.as_loaded = not loras and not embeddings and source.variant is None
    if source.kind == "embedded":
        model.steps = EMBEDDED_STEPS
        return model
    with _failures(source), _silence():
        _try(model)
    return model


def _add(pipe: DiffusionPipeline, loras: Sequence[tuple[Path, float]], embeddings: Sequence[Path]) -> None:
    """Merge LoRAs, each with its scale, and add the words of textual inversions.

    Raises:
        UserError: One is for another model.
    """
    if not loras and not embeddings:
        return
    from unmemorize.models import additions

    with _silence():
        for file, scale in loras:
            additions.merge_lora(pipe, file, scale)
        for file in embeddings:
            additions.add_words(pipe, file)


def _origin(source: Source) -> Path | str | None:
    """Where components that were not loaded are found when the model is saved."""
    if source.kind == "folder":
        return Path(source.path)
    return source.path if source.kind == "hub" else None


def _require_weights(pipe: DiffusionPipeline, path: str) -> None:
    """Refuse a pipeline of which a part has got no weights where it needs some.

    Raises:
        UserError: It has none.
    """
    for name, part in pipe.components.items():
        weights = dict(part.named_parameters()) if hasattr(part, "named_parameters") else {}
        missing = [weight for weight, value in weights.items() if value.is_meta]
        if missing:
            raise UserError(f"{path}: its {name} lacks {len(missing)} weights, such as {missing[0]}: download it again")


def _try(model: PipelineModel) -> None:
    """Make a picture in two steps: parts that do not fit each other are found here, and not hours later.

    A small one; where the network takes none so small, one of the model's own size.
    """
    from unmemorize.core.sample import Sampler, generate

    def make(size: tuple[int, int] | None) -> None:
        tried = wrap(model.pipe, size=size)
        generate(tried, tried.encode([""]), seeds=[0], sampler=Sampler(2))

    side = model.multiple * -(-SMALL // model.multiple)
    try:
        make((side, side))
    except UserError as error:
        raise UserError(f"{model.name}: makes no picture: {error}") from error
    except UnmemorizeError:
        raise
    except Exception:  # of a dozen kinds: the second try says which
        make(model.image_size)


def place(pipe: DiffusionPipeline, device: torch.device, offload: str | None) -> None:
    """Move a pipeline to a device, or let its parts move there when they compute.

    Raises:
        UserError: Parts are to wait on the CPU, and compute there as well.
    """
    if offload is None:
        pipe.to(device)
    elif device.type == "cpu":
        raise UserError(f"--offload {offload}: the model computes on the CPU, where parts wait anyway: leave it out")
    elif offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.enable_group_offload(device, offload_type="leaf_level")


def _dtype(named: torch.dtype | str) -> torch.dtype:
    import torch

    dtype = getattr(torch, named, None) if isinstance(named, str) else named
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise UserError(f"{named}: no such precision: name float32, bfloat16 or float16")
    return dtype


def _pipeline(source: Source, dtype: torch.dtype, config: str | None) -> Any:
    import diffusers

    with _failures(source), _silence():
        if source.kind == "hub":
            _require_answer(source)
            index = diffusers.DiffusionPipeline.load_config(source.path, revision=source.revision)
            source = replace(source, family=require_adapter(source.path, str(index["_class_name"])), null=nulls(index))
        own = getattr(diffusers, str(source.family))
        left_out: dict[str, Any] = dict.fromkeys(source.null)
        if source.family == "StableDiffusionPipeline":
            left_out |= {"safety_checker": None, "requires_safety_checker": False}
        if source.kind == "file":
            with configuration(source, config) as folder:
                return own.from_single_file(
                    source.path, config=str(folder), local_files_only=True, torch_dtype=dtype, **left_out
                )
        pipeline, denoiser = SHIPPED.get(source.path, ("", ""))
        location = ASSETS / pipeline if pipeline else source.path
        twice = TWICE.get(pipeline, {})
        named = {"variant": source.variant, "revision": source.revision} | left_out | dict.fromkeys(twice)
        with _nothing_made_up(source.path):
            pipe = own.from_pretrained(location, dtype=dtype, use_safetensors=True, **named)
        # Copies, so that each can be edited, or moved, by itself.
        pipe.register_modules(**{part: copy.deepcopy(getattr(pipe, same)) for part, same in twice.items()})
        if denoiser:
            part = DENOISERS[str(source.family)]
            network = type(getattr(pipe, part))
            setattr(pipe, part, network.from_pretrained(ASSETS / denoiser, torch_dtype=dtype, use_safetensors=True))
        return pipe


def _require_answer(source: Source) -> None:
    """Ask the hub once, where a model is not at hand: the libraries go on asking a hub that cannot be reached.

    Raises:
        UserError: There is no connection to it.
    """
    import huggingface_hub as hub
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    index = "model_index.json"
    if hub.try_to_load_from_cache(source.path, index, revision=source.revision) is not None:
        return
    try:
        hub.get_hf_file_metadata(hub.hf_hub_url(source.path, index, revision=source.revision))
    except (HfHubHTTPError, OfflineModeIsEnabled):
        return  # the libraries say what it answers, or that it is switched off
    except Exception as error:  # of the library beneath, which is not ours to name
        raise UserError(
            f"{source.path}: no such folder, and the hub cannot be reached ({error}): name a pipeline folder"
        ) from error


@contextmanager
def _failures(source: Source) -> Iterator[None]:
    """What the libraries raise over a broken model, in one line."""
    try:
        yield
    except UnmemorizeError:
        raise
    except Exception as error:  # of a dozen kinds, by whichever library was reading
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "ignore_mismatched_sizes" in reason:  # it goes on to point to a report that is not printed
            reason = "its weights have other shapes than its configurations say"
        off = source.kind == "hub" and os.environ.get("HF_HUB_OFFLINE")
        hint = " (the hub is switched off)" if off else ""
        raise UserError(
            f"{source.path}: cannot be loaded as a {source.family or 'pipeline'}{hint}: {reason}"
        ) from error


class _Seen(logging.Filter):
    """Notes whether a library says something of what it loads, and passes on nothing."""

    def __init__(self, mark: str) -> None:
        super().__init__()
        self.mark, self.said = mark, ""

    def filter(self, record: logging.LogRecord) -> bool:
        self.said = self.said or (record.getMessage() if self.mark in record.getMessage() else "")
        return False


@contextmanager
def _nothing_made_up(path: str) -> Iterator[None]:
    """Refuse text encoders whose file lacks weights, which transformers draws at random, and weights without a place.

    Raises:
        UserError: Some were drawn, or a denoiser's or VAE's file has more than the network: scales of quantized
            weights, say, without which they mean something else.
    """
    made_up, unused = _Seen("MISSING"), _Seen("were not used when initializing")
    listened = {"transformers.modeling_utils": made_up, "diffusers.models.modeling_utils": unused}
    levels = {}
    for name, seen in listened.items():
        logger = logging.getLogger(name)
        levels[name] = logger.level
        logger.addFilter(seen)
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for name, seen in listened.items():
            logger = logging.getLogger(name)
            logger.removeFilter(seen)
            logger.setLevel(levels[name])
    if made_up.said:
        raise UserError(f"{path}: weights of its text encoder are missing: download it again")
    if unused.said:
        network, weights = unused.said.split(unused.mark)[1].split(":", 1)
        names = weights.strip(" \n[]'").split(", ")
        raise UserError(
            f"{path}: {len(names)} weights of its file, such as {min(names)}, have no place in its {network.strip()}: "
            "name a folder that pipe.save_pretrained(...) wrote"
        )


@contextmanager
def _silence() -> Iterator[None]:
    """Hide the libraries' loading bars and notices, and put their settings back."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    libraries: tuple[Any, ...] = (of_diffusers, of_transformers)
    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    for library in libraries:
        library.set_verbosity(logging.CRITICAL)  # what they complain of is raised as well
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, (level, shown) in zip(libraries, before, strict=True):
            library.set_verbosity(level)
            if shown:
                library.enable_progress_bar()
