"""Score every prompt with a detector, in pieces that survive a kill."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from unmemorize.core.errors import UserError
from unmemorize.core.methods import Detector, parse
from unmemorize.core.plain import to_json
from unmemorize.core.results import Scores
from unmemorize.core.run import Progress, Run
from unmemorize.core.shards import WHOLE, Part, Row, write_rows
from unmemorize.core.specs import DetectSpec
from unmemorize.data.source import Prompt
from unmemorize.stages.inputs import Inputs, prompt_source
from unmemorize.stages.stage import Cost, Stage, Work, in_shards


def detect(spec: DetectSpec, run: Path, progress: Progress, part: Part = WHOLE) -> list[Row]:
    """Score the prompts into `run`; returns one row a prompt, highest score first.

    Raises:
        UserError: The model, the prompts or the method cannot be used, or `run` holds another run.
        Unfinished: Other parts are not done.
    """
    parse("detector", spec.method)  # or a mistake in it would be told once the model is loaded
    inputs = Inputs.of(spec)
    prompts = inputs.prompts
    source = prompt_source(inputs.bundle.source("prompts"), prompts)
    with Run.open(run, inputs.record({"prompts": source})):
        write_prompts(prompts, run)
        table = scoring(inputs, run, progress).run(run, progress, part)
    scores = table["score"].to_numpy().reshape(len(prompts), -1).mean(axis=1)
    spent = table["evaluations"].to_numpy().reshape(len(prompts), -1).sum(axis=1)
    rows = [
        {"prompt": prompt.text, "score": float(score), "seeds": list(spec.numbers), "evaluations": int(cost)}
        for prompt, score, cost in zip(prompts, scores, spent, strict=True)
    ]
    return sorted(rows, key=lambda row: -row["score"])


def scoring(inputs: Inputs, run: Path, progress: Progress) -> Work[Prompt]:
    """Scoring the prompts: `scores/detect.parquet`, one row a prompt and seed, in that order."""
    return scores_of_all("detect", inputs, inputs.prompts)


def scores_of_all(name: str, inputs: Inputs, prompts: Sequence[Prompt]) -> Work[Prompt]:
    """Scoring some prompts: `scores/NAME.parquet`, one row a prompt and seed, in that order.

    A shard raises UserError where the model's predictions are not finite.
    """
    detector: Detector = parse("detector", inputs.spec.method)
    model, seeds = inputs.model, inputs.spec.numbers
    score = detector.ready(inputs.subject, seeds=seeds)

    def do(shard: Sequence[Prompt]) -> list[Row]:
        scores = score(model.encode([prompt.text for prompt in shard]))
        if not scores.by_seed.isfinite().all():
            raise UserError(f"{model.name}: its predictions are not finite: load it in a wider dtype")
        return _rows(shard, scores, detector.name, seeds)

    return Work(name, f"scores/{name}.parquet", prompts, do, size=32)


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


def write_prompts(prompts: Sequence[Prompt], run: Path) -> None:
    """Write `scores/prompts.parquet`."""
    text, integer, truth = pa.string(), pa.int64(), pa.bool_()
    known = [("kind", text), ("copies", integer), ("memorable", truth), ("cluster", text)]
    schema = pa.schema([("id", text), ("prompt", text), *known])
    rows = [{"id": p.id, "prompt": p.text} | {name: getattr(p, name) for name, _ in known} for p in prompts]
    write_rows(run / "scores" / "prompts.parquet", rows, schema)


def _cost(inputs: Inputs) -> Cost:
    return Cost(inputs.spec.seeds * (len(inputs.prompts) + 1))


DETECT = Stage("detect", "detect", in_shards(scoring), _cost)
