"""Which detectors apply to a model, and what each costs there when it is used alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from unmemorize.core.choose import evenly
from unmemorize.core.crew import Crew
from unmemorize.core.errors import NotApplicable
from unmemorize.core.methods import Detector, spelled
from unmemorize.core.recording import ROWS, Recorder
from unmemorize.core.run import Progress
from unmemorize.core.sample import predicted
from unmemorize.core.shards import Row, write_rows
from unmemorize.stages.detect import detectors_of, fitted
from unmemorize.stages.inputs import Inputs
from unmemorize.stages.stage import Stage

PROMPTS = 16  # that costs are measured on, evenly spread
TIMES = 3  # that one evaluation is timed
SCHEMA = pa.schema(
    [("method", pa.string()), ("reason", pa.string()), ("evaluations", pa.float64()), ("ratio", pa.float64())]
)


def _work(inputs: Inputs, run: Path, progress: Progress, crew: Crew) -> None:
    """Write `scores/trial.parquet`: evaluations a prompt and seed, and the time they take as a multiple of one.

    A detector that does not apply has a reason instead.
    """
    rows: list[Row] = []
    for detector in detectors_of(inputs.spec):
        rows.append({"method": spelled(detector), "reason": reason(inputs, detector)})
    applicable = [row for row in rows if row["reason"] is None]
    if applicable:
        once = _seconds(lambda: _evaluate(inputs)) / ROWS
        detectors = fitted(with_methods(inputs, [row["method"] for row in applicable]), run, progress)
        for done, (row, detector) in enumerate(zip(applicable, detectors, strict=True)):
            progress("trial", done, len(detectors))
            row |= _cost(inputs, detector, once)
    write_rows(run / "scores" / "trial.parquet", rows, SCHEMA)


def with_methods(inputs: Inputs, methods: Sequence[str]) -> Inputs:
    """The inputs with other detectors."""
    return replace(inputs, spec=replace(inputs.spec, method=tuple(methods)))


def trials(run: Path) -> dict[str, Row]:
    """The rows of the table by method."""
    return {row["method"]: row for row in pq.read_table(run / "scores" / "trial.parquet").to_pylist()}


def reason(inputs: Inputs, detector: Detector) -> str | None:
    """Why the detector does not apply to the model; None where it does."""
    try:
        detector.score(inputs.subject, inputs.model.encode([inputs.prompts[0].text]), seeds=inputs.spec.numbers)
    except NotApplicable as error:
        return str(error)
    return None


def _cost(inputs: Inputs, detector: Detector, once: float) -> Row:
    """What a prompt and seed cost: evaluations, those that prompts share left out, and time beside `once`."""
    texts = [inputs.prompts[i].text for i in evenly(len(inputs.prompts), PROMPTS)]
    cond, seeds = inputs.model.encode(texts), inputs.spec.numbers
    since = time.perf_counter()
    scores = detector.score(inputs.subject, cond, seeds=seeds)
    seconds = time.perf_counter() - since
    count = scores.by_seed.numel()
    return {"evaluations": scores.evaluations / count, "ratio": seconds / count / once}


def _evaluate(inputs: Inputs) -> None:
    """Evaluate the denoiser on as many rows as a recording does at once."""
    recorder = Recorder(inputs.model, inputs.subject.sampler, tuple(range(ROWS)))
    x, t = recorder.start
    predicted(inputs.model, x, t, recorder.empty.repeat(ROWS)).output.cpu()  # a GPU is waited for


def _seconds(work: Callable[[], None]) -> float:
    """The shortest of some runs, after one to warm up."""
    work()
    runs = []
    for _ in range(TIMES):
        since = time.perf_counter()
        work()
        runs.append(time.perf_counter() - since)
    return min(runs)


TRIAL = Stage("trial", "trial", _work)
