"""Score every prompt with a detector, in pieces that survive a kill."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from unmemorize.core.errors import UserError
from unmemorize.core.model import DiffusionModel
from unmemorize.core.plain import to_json
from unmemorize.core.registry import get_detector
from unmemorize.core.results import NoiseTrace
from unmemorize.core.run import Progress, RunRecord, atomic, open_run, versions
from unmemorize.core.sample import first_unconditional, trajectory
from unmemorize.core.shards import merge_shards, run_shards
from unmemorize.core.specs import DetectSpec, first_and_last, recorded
from unmemorize.data.source import Prompt
from unmemorize.detect.noise import noise_gap_along, noise_gap_at_start
from unmemorize.jobs.inputs import load_as_asked, prompt_source, prompts_of, with_sampling

Row = dict[str, Any]


def detect(spec: DetectSpec, run: Path, progress: Progress) -> list[Row]:
    """Score the prompts into `run`; returns one row a prompt, highest score first.

    Raises:
        UserError: The model, the prompts, the method or the window cannot be used, or `run` holds another run.
    """
    get_detector(spec.method)
    prompts = prompts_of(spec.model, spec.prompts, spec.column)
    model = load_as_asked(spec)
    spec = with_sampling(spec, model)
    first_and_last(spec.window, spec.steps)
    record = RunRecord(
        status="running",
        spec=recorded(spec),
        versions=versions(),
        model={"name": model.name, "fingerprint": model.fingerprint},
        data={"prompts": prompt_source(spec.prompts or spec.model, prompts)},
    )
    open_run(run, record)
    table = score_prompts(model, prompts, spec, run, progress)
    record.model_copy(update={"status": "finished"}).save(run)
    scores = table["score"].to_numpy().reshape(len(prompts), -1).mean(axis=1)
    spent = table["evaluations"].to_numpy().reshape(len(prompts), -1).sum(axis=1)
    rows = [
        {"prompt": prompt.text, "score": float(score), "seeds": list(spec.numbers), "evaluations": int(cost)}
        for prompt, score, cost in zip(prompts, scores, spent, strict=True)
    ]
    return sorted(rows, key=lambda row: -row["score"])


def score_prompts(
    model: DiffusionModel, prompts: Sequence[Prompt], spec: DetectSpec, run: Path, progress: Progress
) -> pa.Table:
    """Write `scores/prompts.parquet` and `scores/detect.parquet`: one row a prompt and seed, in that order."""
    _write_prompts(prompts, run / "scores" / "prompts.parquet")
    return score_into(model, prompts, spec, run, "detect", progress)


def score_into(
    model: DiffusionModel, prompts: Sequence[Prompt], spec: DetectSpec, run: Path, name: str, progress: Progress
) -> pa.Table:
    """Write `scores/NAME.parquet`: one row a prompt and seed, in that order.

    Raises:
        UserError: The model's predictions are not finite.
    """
    score = _scorer(model, spec)

    def work(piece: Sequence[Prompt]) -> list[Row]:
        rows = score([p.text for p in piece])
        if not np.isfinite([row["score"] for row in rows]).all():
            raise UserError(f"{model.name}: its predictions are not finite: load it in a wider dtype")
        pairs = [(p.id, seed) for p in piece for seed in spec.numbers]
        return [{"id": i, "method": spec.method, "seed": s} | row for (i, s), row in zip(pairs, rows, strict=True)]

    for done in run_shards(prompts, work, folder=run / "shards" / name, size=32):
        progress(name, done, len(prompts))
    return merge_shards(run / "shards" / name, run / "scores" / f"{name}.parquet")


def wen_lines(run: Path) -> list[str]:
    """The run's norms as the JSON lines of the public code of Wen et al. 2024, in the order of the prompts.

    Raises:
        UserError: The run's detector keeps no norms.
    """
    rows = pq.read_table(run / "scores" / "detect.parquet").to_pylist()
    lines: dict[str, Row] = {}
    texts = {row["id"]: row["prompt"] for row in pq.read_table(run / "scores" / "prompts.parquet").to_pylist()}
    for row in rows:
        if "text_norm" not in row:
            raise UserError("--format wen-jsonl holds the norms of noise-gap: choose --method noise-gap")
        line = lines.setdefault(row["id"], {"uncond_noise_norm": [], "text_noise_norm": [], "prompt": texts[row["id"]]})
        line["uncond_noise_norm"].append(row["uncond_norm"])
        line["text_noise_norm"].append(row["text_norm"])
    return [to_json(line) for line in lines.values()]


def _scorer(model: DiffusionModel, spec: DetectSpec) -> Callable[[list[str]], list[Row]]:
    """A function from prompts to rows, one a prompt and seed."""
    if spec.method != "noise-gap":
        return lambda texts: _recorded(model, texts, spec)
    seeds, window = spec.numbers, first_and_last(spec.window, spec.steps)
    if window != (0, 1):
        guidance = model.guidance if spec.guidance is None else spec.guidance

        def trace(texts: list[str]) -> NoiseTrace:
            return noise_gap_along(model, texts, seeds=seeds, steps=spec.steps, window=window, guidance=guidance)
    else:
        empty = first_unconditional(model, seeds=seeds, steps=spec.steps)

        def trace(texts: list[str]) -> NoiseTrace:
            return noise_gap_at_start(model, texts, empty, seeds=seeds, steps=spec.steps)

    def rows(texts: list[str]) -> list[Row]:
        found = trace(texts)
        cost = found.evaluations // found.scores.numel()
        columns = zip(*(v.flatten(0, 1).tolist() for v in (found.scores, found.text, found.uncond)), strict=True)
        return [{"score": s, "evaluations": cost, "text_norm": t, "uncond_norm": u} for s, t, u in columns]

    return rows


def _recorded(model: DiffusionModel, texts: list[str], spec: DetectSpec) -> list[Row]:
    """Any registered detector, on recorded sampling steps."""
    scores: list[float] = []
    seeds, (first, last) = spec.numbers, first_and_last(spec.window, spec.steps)
    with model.counted() as cost:
        for text in texts:
            cond = model.encode([text] * len(seeds))
            path = trajectory(model, cond, seeds=seeds, steps=spec.steps, guidance=spec.guidance)
            steps = list(islice(path, first, last))
            scores += get_detector(spec.method).score(steps).tolist()
    return [{"score": score, "evaluations": cost.forward // len(scores)} for score in scores]


def _write_prompts(prompts: Sequence[Prompt], path: Path) -> None:
    text, integer, truth = pa.string(), pa.int64(), pa.bool_()
    known = [("kind", text), ("copies", integer), ("memorable", truth), ("cluster", text)]
    schema = pa.schema([("id", text), ("prompt", text), *known])
    rows = [{"id": p.id, "prompt": p.text} | {name: getattr(p, name) for name, _ in known} for p in prompts]
    with atomic(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema), temporary)
