"""What an audit looks at, and what it has scored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from unmemorize.core.errors import NotApplicable
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


def ordinary_scores(spec: AuditSpec, run: Path) -> np.ndarray:
    """The scores of the prompts that calibrate it, one a prompt: each at one of the seeds, in turn.

    A threshold for a share of prompts counts independent scores, and those of one prompt are nearly equal: pooled over
    seeds, a few prompts would pass for many.

    Raises:
        NotApplicable: There are none.
    """
    prompts = ordinary(spec)
    scores = scores_of(run, len(audited(spec)))[list(prompts.listed)]
    table = run / "scores" / "ordinary.parquet"
    if table.exists():
        others = pq.read_table(table)["score"].to_numpy().reshape(len(prompts.others), -1)
        scores = np.concatenate([scores, others])
    if not len(scores):
        raise NotApplicable("no ordinary prompt was scored: name a file with --ordinary")
    rows = np.arange(len(scores))
    chosen: np.ndarray = scores[rows, rows % scores.shape[1]]
    return chosen
