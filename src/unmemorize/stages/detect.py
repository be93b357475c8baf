"""Score every prompt with a detector, in pieces that survive a kill."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from unmemorize.core.errors import UserError
from unmemorize.core.methods import Detector, Subject, parse
from unmemorize.core.plain import to_json
from unmemorize.core.results import Scores
from unmemorize.core.run import Progress, Run
from unmemorize.core.shards import Row, merge_shards, run_shards, write_rows
from unmemorize.core.specs import DetectSpec
from unmemorize.data.source import Prompt
from unmemorize.stages.inputs import (
    Inputs,
    bundle_of,
    load_as_asked,
    prompt_source,
    record_of,
    subject_of,
    with_sampling,
)
from unmemorize.stages.stage import Cost, Stage


def detect(spec: DetectSpec, run: Path, progress: Progress) -> list[Row]:
    """Score the prompts into `run`; returns one row a prompt, highest score first.

    Raises:
        UserError: The model, the prompts or the method cannot be used, or `run` holds another run.
    """
    detector: Detector = parse("detector", spec.method)
    bundle = bundle_of(spec)
    prompts = bundle.prompts
    model = load_as_asked(spec)
    spec = with_sampling(spec, model)
    data = {"prompts": prompt_source(bundle.source("prompts"), prompts)}
    with Run.open(run, record_of(spec, model, data)):
        table = score_prompts(subject_of(spec, model), detector, prompts, run, progress, seeds=spec.numbers)
    scores = table["score"].to_numpy().reshape(len(prompts), -1).mean(axis=1)
    spent = table["evaluations"].to_numpy().reshape(len(prompts), -1).sum(axis=1)
    rows = [
        {"prompt": prompt.text, "score": float(score), "seeds": list(spec.numbers), "evaluations": int(cost)}
        for prompt, score, cost in zip(prompts, scores, spent, strict=True)
    ]
    return sorted(rows, key=lambda row: -row["score"])


def score_prompts(
    subject: Subject,
    detector: Detector,
    prompts: Sequence[Prompt],
    run: Path,
    progress: Progress,
    *,
    seeds: Sequence[int],
) -> pa.Table:
    """Write `scores/prompts.parquet` and `scores/detect.parquet`: one row a prompt and seed, in that order."""
    _write_prompts(prompts, run / "scores" / "prompts.parquet")
    return score_into("detect", subject, detector, prompts, run, progress, seeds=seeds)


def score_into(
    name: str,
    subject: Subject,
    detector: Detector,
    prompts: Sequence[Prompt],
    run: Path,
    progress: Progress,
    *,
    seeds: Sequence[int],
) -> pa.Table:
    """Write `scores/NAME.parquet`: one row a prompt and seed, in that order.

    Raises:
        UserError: The model's predictions are not finite.
    """
    model = subject.model
    score = detector.ready(subject, seeds=seeds)

    def work(shard: Sequence[Prompt]) -> list[Row]:
        scores = score(model.encode([prompt.text for prompt in shard]))
        if not scores.by_seed.isfinite().all():
            raise UserError(f"{model.name}: its predictions are not finite: load it in a wider dtype")
        return _rows(shard, scores, detector.name, seeds)

    for done in run_shards(prompts, work, folder=run / "shards" / name, size=32):
        progress(name, done, len(prompts))
    return merge_shards(run / "shards" / name, run / "scores" / f"{name}.parquet")


def _rows(prompts: Sequence[Prompt], scores: Scores, method: str, seeds: Sequence[int]) -> list[Row]:
    cost = scores.evaluations // scores.by_seed.numel()
    rows = []
    for i, prompt in enumerate(prompts):
        for k, seed in enumerate(seeds):
            row: Row = {"id": prompt.id, "method": method, "seed": seed}
            row |= {"score": float(scores.by_seed[i, k]), "evaluations": cost}
            for name, values in scores.columns.items():
                row[name] = values[i, k].tolist()
            rows.append(row)
    return rows


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


def _write_prompts(prompts: Sequence[Prompt], path: Path) -> None:
    text, integer, truth = pa.string(), pa.int64(), pa.bool_()
    known = [("kind", text), ("copies", integer), ("memorable", truth), ("cluster", text)]
    schema = pa.schema([("id", text), ("prompt", text), *known])
    rows = [{"id": p.id, "prompt": p.text} | {name: getattr(p, name) for name, _ in known} for p in prompts]
    write_rows(path, rows, schema)


def _work(inputs: Inputs, run: Path, progress: Progress) -> None:
    detector: Detector = parse("detector", inputs.spec.method)
    score_prompts(inputs.subject, detector, inputs.prompts, run, progress, seeds=inputs.spec.numbers)


def _cost(inputs: Inputs) -> Cost:
    return Cost(inputs.spec.seeds * (len(inputs.prompts) + 1))


DETECT = Stage("detect", "detect", _work, _cost)
