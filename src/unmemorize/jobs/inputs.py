"""What commands are given: a model, prompts and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch

from unmemorize.core.errors import UserError
from unmemorize.core.methods import Subject
from unmemorize.core.model import DiffusionModel
from unmemorize.core.run import Source, digest
from unmemorize.core.sample import Sampler
from unmemorize.data.bundle import Bundle
from unmemorize.data.source import Prompt
from unmemorize.models.load import EMBEDDED, load
from unmemorize.models.pipeline import PipelineModel
from unmemorize.testbed import embedded

Spec = TypeVar("Spec", bound=Any)


def bundle_of(spec: Any) -> Bundle:
    """The prompts and pictures that a command's settings name, or the testbed's."""
    return Bundle.of(spec, embedded.own() if spec.model in EMBEDDED else None)


def load_as_asked(spec: Any) -> PipelineModel:
    """The model that the settings name, as `core.specs.Loaded` says.

    Raises:
        UserError: It cannot be loaded, or there is no such device or precision here.
    """
    if spec.device:
        _check_device(spec.device)
    return load(
        spec.model,
        device=spec.device or None,
        dtype=spec.dtype or None,
        variant=spec.variant or None,
        config=spec.config or None,
        lora=spec.lora,
        embedding=spec.embedding,
    )


def _check_device(device: str) -> None:
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise UserError(f"--device {device}: no such device: name cpu or cuda") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {device}: torch sees no GPU here: leave it out, or name cpu")


def with_sampling(spec: Spec, model: DiffusionModel) -> Spec:
    """The settings with the model's own number of sampling steps and guidance scale where none were named."""
    guidance = model.guidance if spec.guidance is None else spec.guidance
    return replace(spec, steps=spec.steps or model.steps, guidance=guidance)


def subject_of(spec: Any, model: DiffusionModel) -> Subject:
    """The model, drawn from as the settings say."""
    return Subject(model, Sampler(spec.steps or None, spec.guidance))


def prompt_source(source: str, prompts: Sequence[Prompt]) -> Source:
    """Where prompts came from, for a run's record."""
    return Source(source=source, sha256=digest(p.text.encode() for p in prompts), count=len(prompts))
