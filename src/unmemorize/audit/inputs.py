"""What an audit looks at: a model, and prompts and pictures, each read once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from unmemorize.core.methods import Subject
from unmemorize.core.model import DiffusionModel
from unmemorize.core.specs import AuditSpec
from unmemorize.data.bundle import Bundle
from unmemorize.data.source import Prompt
from unmemorize.jobs.calibrate import Ordinary, split_ordinary
from unmemorize.jobs.copies import CopyCheck, copy_check
from unmemorize.jobs.inputs import subject_of
from unmemorize.metrics.similarity import References

UNSEEN = "no training pictures were given: name their folder with --references"
PLAIN = 600  # plain descriptions that stand in for ordinary prompts where none are given


class NotRun(Exception):
    """A stage lacks what it needs; the message says what to give it."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """The settings, the model, and the bundle; what follows from them is made once."""

    spec: AuditSpec
    model: DiffusionModel
    bundle: Bundle

    @property
    def prompts(self) -> list[Prompt]:
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
    """The recorded scores: (prompts, seeds)."""
    scores: np.ndarray = pq.read_table(run / "scores" / "detect.parquet")["score"].to_numpy()
    return scores.reshape(prompts, -1)
