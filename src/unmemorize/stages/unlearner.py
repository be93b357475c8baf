"""What unlearning is given: the unlearner, pictures with captions, and surrogates."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from unmemorize.core.errors import NotApplicable, UserError
from unmemorize.core.methods import Subject, Unlearner, parse
from unmemorize.core.model import DiffusionModel
from unmemorize.core.results import Localization, Pairs, Surrogates
from unmemorize.core.run import Progress
from unmemorize.core.specs import MitigateSpec
from unmemorize.localize.wanda import Wanda
from unmemorize.metrics.similarity import References
from unmemorize.mitigate.edit import Edit
from unmemorize.stages.inputs import bundle_of
from unmemorize.stages.mitigations import mitigation_of
from unmemorize.study.copies import CopyCheck
from unmemorize.study.effects import latents_of
from unmemorize.unlearn.finetune import Finetuning
from unmemorize.unlearn.surrogates import make_surrogates

PRUNED = (0.1, 0.4, 0.8)  # of each weight row, by Wanda: the least that makes enough surrogates of a picture
TESTBED_RATE = 20  # times the usual learning rate: the testbed is small


def unlearner_of(spec: MitigateSpec) -> Unlearner:
    """The unlearner, with the number of updates that was asked for, and the testbed's learning rate there.

    Raises:
        UserError: There is no such unlearner, or a setting is out of range.
    """
    unlearner: Unlearner = parse("unlearner", spec.method)
    changes: dict[str, int | float] = {}
    if spec.updates is not None:
        changes["updates"] = spec.updates
    if bundle_of(spec).own is not None and isinstance(unlearner, Finetuning) and not unlearner.lr:
        changes["lr"] = TESTBED_RATE * unlearner.usual_lr
    try:
        return dataclasses.replace(unlearner, **changes)  # type: ignore[type-var]
    except (TypeError, ValueError) as error:
        raise UserError(f"{spec.method}: {error}") from error


def pairs_of(model: DiffusionModel, pictures: References) -> Pairs:
    """The pictures' latents with their encoded captions."""
    return Pairs(latents_of(model, pictures.pixels), model.encode(pictures.prompts))


def surrogates_of(
    spec: MitigateSpec,
    subject: Subject,
    memorized: References,
    ordinary: Sequence[str],
    copies: CopyCheck,
    progress: Progress,
) -> Surrogates:
    """Pictures by the model under the named mitigation, or pruned by Wanda as far as they need.

    A mitigation that needs ordinary prompts or pictures to keep away from is given `ordinary` and the memorized ones.
    """

    def is_copy(images: Tensor, number: int) -> list[bool]:
        return [match.copied for match in copies.against(images, memorized[[number] * len(images)])]

    blocks = _mitigated(spec, subject, memorized, ordinary)
    return make_surrogates(memorized.prompts, is_copy, mitigated=blocks, count=spec.surrogates, progress=progress)


def _mitigated(
    spec: MitigateSpec, subject: Subject, memorized: References, ordinary: Sequence[str]
) -> Iterator[AbstractContextManager[Subject]]:
    """The named mitigation, or Wanda's edits, each stronger than the one before, and in the end one without any text.

    Of a picture that Wanda does not hide the surrogates are what the model makes of nothing, in families with layers
    that read the text alone.
    """
    model = subject.model
    cond = model.encode(memorized.prompts)
    if spec.mitigation:
        mitigation = mitigation_of(spec.mitigation, model)
        pictures = latents_of(model, memorized.pixels) if "pictures" in mitigation.needs else None
        fitted = mitigation.fitted(subject, prompts=cond, ordinary=model.encode(ordinary), pictures=pictures)
        yield fitted.applied(subject)
        return
    hashed = model.fingerprint
    for share in PRUNED:
        yield Edit.of(Wanda(sparsity=share).find(subject, cond), hashed).applied(subject)
    try:
        layers = model.text_projections()
    except NotApplicable:
        return
    widths = {name: layer.out_features for name, layer in layers.items()}
    every = {name: torch.ones(width, dtype=torch.bool) for name, width in widths.items()}
    all_values = Localization("all values", "channels", every, {}, (), tuple(memorized.prompts), 0)
    yield Edit.of(all_values, hashed).applied(subject)
