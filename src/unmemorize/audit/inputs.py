"""What an audit looks at, and what it has scored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from unmemorize.core.specs import AuditSpec
from unmemorize.data.source import Prompt
from unmemorize.jobs.calibrate import Ordinary, split_ordinary
from unmemorize.jobs.inputs import ordinary_of, prompts_of

PLAIN = 600  # plain descriptions that stand in for ordinary prompts where none are given


def audited(spec: AuditSpec) -> list[Prompt]:
    """The prompts of the audit."""
    return prompts_of(spec.model, spec.prompts, spec.column)


def ordinary(spec: AuditSpec) -> Ordinary:
    """The prompts that calibrate it."""
    return split_ordinary(audited(spec), ordinary_of(spec.model, spec.ordinary, spec.column, PLAIN))


def scores_of(run: Path, prompts: int) -> np.ndarray:
    """The recorded scores: (prompts, seeds)."""
    scores: np.ndarray = pq.read_table(run / "scores" / "detect.parquet")["score"].to_numpy()
    return scores.reshape(prompts, -1)
