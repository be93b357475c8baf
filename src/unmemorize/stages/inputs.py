"""What a command is given: a model, and prompts and pictures, each read once."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from unmemorize.core.criteria import Criterion
from unmemorize.core.devices import device_of
from unmemorize.core.errors import UserError
from unmemorize.core.methods import Subject
from unmemorize.core.model import DiffusionModel
from unmemorize.core.run import RunRecord, Source, digest, versions
from unmemorize.core.sample import Sampler
from unmemorize.core.specs import OfModel, Prompted, Sampled, recorded
from unmemorize.data.bundle import Bundle
from unmemorize.data.source import Prompt
from unmemorize.metrics.similarity import References
from unmemorize.models.load import EMBEDDED, load
from unmemorize.models.pipeline import PipelineModel
from unmemorize.study.copies import CopyCheck, copy_check
from unmemorize.testbed import embedded

Spec = TypeVar("Spec", bound=Any)
UNSEEN = "no training pictures were given: name their folder with --references"
PLAIN = 600  # plain descriptions that stand in for ordinary prompts where none are given


class NotRun(UserError):
    """A stage lacks what it needs; the message says what to give it."""


@dataclass(frozen=True)
class Ordinary:
    """The ordinary prompts: those that are in the audited list, by position there, and those that are not."""

    listed: tuple[int, ...]
    unlisted: tuple[Prompt, ...]


def split_ordinary(prompts: Sequence[Prompt], ordinary: Sequence[str]) -> Ordinary:
    """Which of the audited prompts are ordinary, and the ordinary ones that are not audited."""
    place = {p.text: i for i, p in enumerate(prompts)}
    listed = sorted(place[text] for text in set(ordinary) if text in place)
    texts = [text for text in dict.fromkeys(ordinary) if text not in place]
    unlisted = [Prompt(f"ordinary-{i:05d}", text) for i, text in enumerate(texts)]
    return Ordinary(tuple(listed), tuple(unlisted))


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a command works with; what follows from it is made once.

    Attributes:
        spec: The command's settings, with the model's own steps and guidance where none were named.
        model: The model.
        bundle: The prompts and pictures.
    """

    spec: Any  # of any command that loads a model: `core.specs` has them
    model: PipelineModel
    bundle: Bundle

    @classmethod
    def of(cls, spec: OfModel, *, prompts_first: bool = True) -> Inputs:
        """Those that a command's settings name.

        Prompts are read before the model, which takes longer; where `prompts_first` is False, when they are asked for.

        Raises:
            UserError: The prompts or the model cannot be used.
        """
        bundle = bundle_of(spec)
        if prompts_first and isinstance(spec, Prompted):
            _ = bundle.prompts
        model = load_as_asked(spec)
        return cls(with_sampling(spec, model), model, bundle)

    def record(self, data: Mapping[str, Source], criterion: Criterion | None = None) -> RunRecord:
        """The record of a run that begins: its settings, model and inputs, and what it counts as a copy."""
        return RunRecord(
            status="running",
            spec=recorded(self.spec),
            versions=versions(),
            model={"name": self.model.name, "fingerprint": self.model.fingerprint},
            data=dict(data),
            criterion=criterion,
        )

    @property
    def prompts(self) -> Sequence[Prompt]:
        """The prompts that are audited."""
        return self.bundle.prompts

    @cached_property
    def ordinary(self) -> Ordinary:
        """The prompts that calibrate the scores."""
        return split_ordinary(self.prompts, self.bundle.ordinary(PLAIN))

    @property
    def subject(self) -> Subject:
        """The model, drawn from as the settings say."""
        return subject_of(self.spec, self.model)

    @property
    def references(self) -> References:
        """The training pictures.

        Raises:
            NotRun: There are none.
        """
        if not self.bundle.has("references"):
            raise NotRun(UNSEEN)
        return self.bundle.references(self.model.image_size)

    @cached_property
    def check(self) -> CopyCheck:
        """The comparison with the training pictures.

        Raises:
            NotRun: There are none.
        """
        source = self.bundle.source("references")
        return copy_check(self.model, self.references, source, self.spec.sscd, self.spec.recipe)


def scores_of(run: Path, prompts: int) -> np.ndarray:
    """The recorded scores of the first method: (prompts, seeds)."""
    table = pq.read_table(run / "scores" / "detect.parquet")
    scores: np.ndarray = table.filter(pc.equal(table["method"], table["method"][0]))["score"].to_numpy()
    return scores.reshape(prompts, -1)


def bundle_of(spec: Any) -> Bundle:
    """The prompts and pictures that a command's settings name, or the testbed's."""
    return Bundle.of(spec, embedded.own(spec.model) if spec.model in EMBEDDED else None)


def load_as_asked(spec: Any) -> PipelineModel:
    """The model that the settings name, loaded as they say.

    Raises:
        UserError: It cannot be loaded, or there is no such device or precision here.
    """
    if spec.device:
        device_of(spec.device)  # before anything is read
    model = load(
        spec.model,
        device=spec.device or None,
        dtype=spec.dtype or None,
        variant=spec.variant or None,
        revision=spec.revision or None,
        offload=spec.offload or None,
        config=spec.config or None,
        lora=spec.lora,
        embedding=spec.embedding,
    )
    model.batch = spec.batch or None
    return model


def with_sampling(spec: Spec, model: DiffusionModel) -> Spec:
    """The settings with the model's own number of sampling steps and guidance scale where none were named."""
    if not isinstance(spec, Sampled):
        return spec
    guidance = model.guidance if spec.guidance is None else spec.guidance
    return replace(spec, steps=spec.steps or model.steps, guidance=guidance)


def subject_of(spec: Any, model: DiffusionModel) -> Subject:
    """The model, drawn from as the settings say."""
    return Subject(model, Sampler(spec.steps or None, spec.guidance))


def text_source(place: str, texts: Collection[str]) -> Source:
    """Where texts come from and what they say, for a run's record."""
    return Source(source=place, sha256=digest(text.encode() for text in texts), count=len(texts))


def prompt_source(place: str, prompts: Sequence[Prompt]) -> Source:
    """`text_source` of prompts."""
    return Source(source=place, sha256=digest(prompt.text.encode() for prompt in prompts), count=len(prompts))
