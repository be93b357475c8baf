"""What a score means: how often ordinary prompts score as high."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from unmemorize.core.crew import Crew
from unmemorize.core.errors import NotApplicable
from unmemorize.core.run import Progress, write_json
from unmemorize.core.shards import write_rows
from unmemorize.data.source import Prompt
from unmemorize.metrics.calibrate import check_calibration, conformal_p_values
from unmemorize.metrics.discovery import benjamini_hochberg
from unmemorize.metrics.related import related
from unmemorize.stages.detect import cost_of, detectors_of, fitted, scores_of_all
from unmemorize.stages.inputs import Inputs, Ordinary, scores_of
from unmemorize.stages.stage import Cost, Stage, Work, run_task

LEVEL = 0.05
ENOUGH = 20  # ordinary prompts, below which no p-value is under the level


def _work(inputs: Inputs, run: Path, progress: Progress, crew: Crew) -> None:
    """Write `scores/calibrated.parquet`: p-values of the audited prompts, adjusted for how many there are.

    Those that are ordinary themselves have none: they are what the others are compared with. Ordinary prompts that are
    not audited are scored into `scores/ordinary.parquet`. `calibration.json` says how well it held on ordinary prompts
    that were left out.

    Raises:
        NotApplicable: There are too few ordinary prompts.
    """
    prompts, ordinary = inputs.prompts, inputs.ordinary
    scores = scores_of(run, len(prompts))
    count = len(ordinary.listed) + len(ordinary.unlisted)
    if count < ENOUGH:
        raise NotApplicable(
            f"{count} ordinary prompts were given and p-values need {ENOUGH}: name a file of more with --ordinary"
        )
    known = scores[list(ordinary.listed)].mean(axis=1)
    if ordinary.unlisted:
        table = pq.read_table(run_task(scoring_ordinary, inputs, run, progress, crew))
        known = np.r_[known, table["score"].to_numpy().reshape(len(ordinary.unlisted), -1).mean(axis=1)]
    tested = sorted(set(range(len(prompts))) - set(ordinary.listed))
    means = scores[tested].mean(axis=1)
    p_values = conformal_p_values(means, known)
    _write_check(run, means, known, _clusters(prompts, ordinary))
    rows = []
    for i, p, q in zip(tested, p_values, benjamini_hochberg(p_values), strict=True):
        rows.append({"id": prompts[i].id, "p_value": float(p), "q_value": float(q)})
    schema = pa.schema([("id", pa.string()), ("p_value", pa.float64()), ("q_value", pa.float64())])
    write_rows(run / "scores" / "calibrated.parquet", rows, schema)


def scoring_ordinary(inputs: Inputs, run: Path, progress: Progress) -> Work[Prompt]:
    """Scoring the ordinary prompts that are not audited, by the first method: `scores/ordinary.parquet`."""
    return scores_of_all("ordinary", inputs, inputs.ordinary.unlisted, fitted(inputs, run, progress)[:1])


def _clusters(prompts: Sequence[Prompt], ordinary: Ordinary) -> list[str]:
    chosen = [*(prompts[i] for i in ordinary.listed), *ordinary.unlisted]
    if all(prompt.cluster for prompt in chosen):
        return [str(prompt.cluster) for prompt in chosen]
    return related([prompt.text for prompt in chosen])


def _write_check(run: Path, scores: np.ndarray, known: np.ndarray, clusters: Sequence[str]) -> None:
    check = check_calibration(scores.tolist(), known.tolist(), clusters, level=LEVEL)
    facts = {"level": LEVEL, "ordinary": len(known), "smallest_p": 1 / (len(known) + 1), "tested": len(scores)}
    write_json(run / "calibration.json", facts | dataclasses.asdict(check))


def _cost(inputs: Inputs) -> Cost:
    unlisted = len(inputs.ordinary.unlisted)
    return Cost(cost_of(inputs, detectors_of(inputs.spec)[:1], unlisted) if unlisted else 0)


CALIBRATE = Stage("calibrate", "calibrated", _work, _cost)
