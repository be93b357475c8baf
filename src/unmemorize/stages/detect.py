"""Score every prompt with detectors, shard by shard: a killed run goes on where it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from unmemorize.core.choose import evenly
from unmemorize.core.crew import ALONE, Crew
from unmemorize.core.errors import UserError
from unmemorize.core.listed import Listed
from unmemorize.core.methods import Detector, Method, parse, score_each, spelled
from unmemorize.core.plain import to_json
from unmemorize.core.recording import Recorder
from unmemorize.core.results import Scores
from unmemorize.core.run import Progress, Run
from unmemorize.core.shards import Row, write_rows
from unmemorize.core.specs import AuditSpec, DetectSpec, Scored
from unmemorize.data.ordinary import ordinary_prompts
from unmemorize.data.source import Prompt, Stored
from unmemorize.stages.inputs import Inputs, prompt_source
from unmemorize.stages.stage import Cost, Stage, Work, in_shards, run_task

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

PLAIN = 50  # plain descriptions that detectors are fitted to
ORDINARY = 20, 200  # ordinary prompts instead of them: at least, and evenly spread at most


def detect(spec: DetectSpec, run: Path, progress: Progress, crew: Crew = ALONE) -> Ranked:
    """Score the prompts into `run`; returns one row a prompt, highest score of the first method first.

    Raises:
        UserError: The model, the prompts or a method cannot be used, or `run` holds another run.
        Unfinished: Other parts are not done.
    """
    detectors = detectors_of(spec)  # or a mistake in one would be told once the model is loaded
    inputs = Inputs.of(spec)
    prompts = inputs.prompts
    sources = {"prompts": prompt_source(inputs.bundle.source("prompts"), prompts)}
    if spec.ordinary:
        sources["ordinary"] = prompt_source(spec.ordinary, fitting_prompts(inputs))
    with Run.open(run, inputs.record(sources)) as opened:
        if not opened.is_kept:
            write_prompts(prompts, run)
            run_task(scoring, inputs, run, progress, crew)
        table = pq.read_table(run / "scores" / "detect.parquet", columns=["score", "evaluations"])
    shape = (len(prompts), len(detectors), spec.seeds)
    scores = table["score"].to_numpy().reshape(shape).mean(axis=2)
    spent = table["evaluations"].to_numpy().reshape(shape).sum(axis=2)
    return Ranked(prompts, [spelled(detector) for detector in detectors], spec.numbers, scores, spent)


class Ranked(Listed[Row]):
    """Prompts by their score with the first method, the highest first: a row is made when it is looked at.

    Args:
        prompts: The prompts, in their own order.
        methods: The methods.
        seeds: The seeds of each score.
        scores: The mean over seeds: (prompts, methods).
        spent: The evaluations that it took: (prompts, methods).
    """

    def __init__(
        self, prompts: Sequence[Prompt], methods: Sequence[str], seeds: Sequence[int], scores: Floats, spent: Ints
    ) -> None:
        self._prompts, self._scores, self._spent = prompts, scores, spent
        self._methods, self._seeds = methods, seeds
        self._order = np.argsort(-scores[:, 0], kind="stable")

    def __len__(self) -> int:
        return len(self._order)

    def at(self, rank: int) -> Row:
        """The row of a rank, from 0."""
        place = int(self._order[rank])
        values, costs = self._scores[place], self._spent[place]
        row: Row = {"prompt": self._prompts[place].text, "score": float(values[0]), "seeds": list(self._seeds)}
        row |= {"evaluations": int(costs.sum()), "methods": {}}
        for method, value, cost in zip(self._methods, values, costs, strict=True):
            row["methods"][method] = {"score": float(value), "evaluations": int(cost)}
        return row

    @property
    def costs(self) -> dict[str, int]:
        """The evaluations that each method took over all prompts."""
        return dict(zip(self._methods, self._spent.sum(axis=0).tolist(), strict=True))


def detectors_of(spec: Scored) -> list[Detector]:
    """The detectors that the settings name, not fitted.

    Raises:
        UserError: None is named, there is no such method or setting, one is named twice, or ordinary prompts are named
            for none that takes something from them.
    """
    detectors: list[Detector] = [parse("detector", text) for text in spec.method]
    if not detectors:
        raise UserError("--method: name a detector: unmemorize methods lists them")
    for i, detector in enumerate(detectors):
        if detector in detectors[:i]:
            raise UserError(f"--method {spelled(detector)}: is named twice")
    if isinstance(spec, DetectSpec) and spec.ordinary and not unfitted_of(detectors):
        names = ", ".join(spelled(detector) for detector in detectors)
        raise UserError(f"--ordinary: {names} takes nothing from ordinary prompts: leave it out")
    return detectors


def unfitted_of(detectors: Sequence[Detector]) -> list[Detector]:
    """Those that take something from ordinary prompts."""
    return [detector for detector in detectors if "ordinary" in detector.needs]


def scoring(inputs: Inputs, run: Path, progress: Progress) -> Work[Prompt]:
    """Scoring the run's prompts: `scores/detect.parquet`, one row a prompt, method and seed, in that order."""
    return scores_of_all("detect", inputs, Stored(prompts_of(run)), fitted(inputs, run, progress))


def fitted(inputs: Inputs, run: Path, progress: Progress) -> list[Detector]:
    """The detectors with what some of them take from ordinary prompts, which are scored into `scores/plain.parquet`."""
    detectors = detectors_of(inputs.spec)
    unfitted = unfitted_of(detectors)
    if not unfitted:
        return detectors
    plain = fitting_prompts(inputs)
    table = pq.read_table(scores_of_all("plain", inputs, plain, unfitted).run(run, progress))
    ready = []
    for detector in detectors:
        if detector in unfitted:
            detector = detector.fitted(_scores(table, detector, len(plain)))
        ready.append(detector)
    return ready


def fitting_prompts(inputs: Inputs) -> list[Prompt]:
    """What detectors are fitted to: ordinary prompts that are named for it, or plain descriptions.

    An audit takes the descriptions: its ordinary prompts are what the others are compared with, and p-values are exact
    for a detector that has not seen them.

    Raises:
        UserError: Fewer are named than a quantile needs.
    """
    texts = ordinary_prompts(PLAIN)
    if not isinstance(inputs.spec, AuditSpec) and "ordinary" in inputs.bundle.files:
        texts = inputs.bundle.ordinary()
        least, most = ORDINARY
        if len(texts) < least:
            file = inputs.bundle.files["ordinary"]
            raise UserError(
                f"{file}: detectors cannot be fitted to {len(texts)} ordinary prompts: name {least} or more"
            )
        texts = [texts[i] for i in evenly(len(texts), most)]
    return [Prompt(f"plain-{i:05d}", text) for i, text in enumerate(texts)]


def _scores(table: pa.Table, detector: Detector, prompts: int) -> Scores:
    """A detector's scores as its rows in a table hold them."""
    own = table.filter(pc.equal(table["method"], spelled(detector)))
    values: dict[str, Tensor] = {}
    for name in own.column_names:
        if name not in ("id", "method", "seed", "evaluations") and not own[name].null_count:
            numbers = torch.tensor(own[name].to_pylist())
            values[name] = numbers.reshape(prompts, -1, *numbers.shape[1:])
    return Scores(values.pop("score"), columns=values)


def scores_of_all(name: str, inputs: Inputs, prompts: Sequence[Prompt], detectors: Sequence[Detector]) -> Work[Prompt]:
    """Scoring some prompts from one recording: `scores/NAME.parquet`, one row a prompt, method and seed, in that order.

    A shard raises UserError where scores are not finite.
    """
    model, seeds = inputs.model, inputs.spec.numbers
    recorder = Recorder(model, inputs.subject.sampler, tuple(seeds))

    def do(shard: Sequence[Prompt]) -> list[Row]:
        scores = score_each(detectors, recorder, model.encode([prompt.text for prompt in shard]))
        for detector, part in zip(detectors, scores, strict=True):
            require_finite(model.name, detector, part)
        return _rows(shard, dict(zip(map(spelled, detectors), scores, strict=True)), seeds)

    return Work(name, f"scores/{name}.parquet", prompts, do, size=32)


def require_finite(model: str, method: Method, scores: Scores) -> None:
    """Refuse scores that are no numbers.

    Raises:
        UserError: They are not finite: by the model's fault, or by that of settings that were typed.
    """
    if not scores.by_seed.isfinite().all():
        typed = spelled(method)
        settings = f"name other settings than {typed}, or " if ":" in typed else ""
        raise UserError(f"{model}: the scores of {method.name} are not finite: {settings}load it in a wider dtype")


def _rows(prompts: Sequence[Prompt], scores: Mapping[str, Scores], seeds: Sequence[int]) -> list[Row]:
    columns: dict[str, None] = {}  # the columns of all methods, in order
    for part in scores.values():
        columns |= dict.fromkeys(part.columns)
    rows = []
    for i, prompt in enumerate(prompts):
        for method, part in scores.items():
            each, more = divmod(part.evaluations, part.by_seed.numel())  # a cascade's prompts do not cost the same
            for k, seed in enumerate(seeds):
                row: Row = {"id": prompt.id, "method": method, "seed": seed}
                cost = each + (i * len(seeds) + k < more)
                row |= {"score": float(part.by_seed[i, k]), "evaluations": cost}
                for name in columns:
                    row[name] = part.columns[name][i, k].tolist() if name in part.columns else None
                rows.append(row)
    return rows


def wen_lines(run: Path) -> list[str]:
    """The run's norms as the JSON lines of the public code of Wen et al. 2024, in the order of the prompts.

    Raises:
        UserError: The run's detector keeps no norms.
    """
    table = pq.read_table(run / "scores" / "detect.parquet")
    if "uncond_norm" not in table.column_names:
        raise UserError("--format wen-jsonl holds the norms of noise-gap: choose --method noise-gap")
    rows = table.filter(pc.equal(table["method"], table["method"][0])).to_pylist()
    lines: dict[str, Row] = {}
    texts = {row["id"]: row["prompt"] for row in pq.read_table(run / "scores" / "prompts.parquet").to_pylist()}
    for row in rows:
        if row["uncond_norm"] is None:
            raise UserError("--format wen-jsonl holds the norms of noise-gap: name --method noise-gap first")
        line = lines.setdefault(row["id"], {"uncond_noise_norm": [], "text_noise_norm": [], "prompt": texts[row["id"]]})
        line["uncond_noise_norm"].append(row["uncond_norm"])
        line["text_noise_norm"].append(row["text_norm"])
    return [to_json(line) for line in lines.values()]


def write_prompts(prompts: Sequence[Prompt], run: Path) -> None:
    """Write `scores/prompts.parquet`."""
    text, integer, truth = pa.string(), pa.int64(), pa.bool_()
    known = [("kind", text), ("copies", integer), ("memorable", truth), ("cluster", text)]
    schema = pa.schema([("id", text), ("prompt", text), *known])
    names = [name for name, _ in known]
    rows = ({"id": p.id, "prompt": p.text} | {name: getattr(p, name) for name in names} for p in prompts)
    write_rows(prompts_of(run), rows, schema)


def prompts_of(run: Path) -> Path:
    """The table of a run's prompts."""
    return run / "scores" / "prompts.parquet"


def _cost(inputs: Inputs) -> Cost:
    detectors = detectors_of(inputs.spec)
    evaluations = cost_of(inputs, detectors, len(inputs.prompts))
    if unfitted := unfitted_of(detectors):
        evaluations += cost_of(inputs, unfitted, len(fitting_prompts(inputs)))
    return Cost(evaluations)


def cost_of(inputs: Inputs, detectors: Sequence[Detector], prompts: int) -> int:
    """Evaluations that scoring so many prompts takes, from those that the first one took."""
    model = inputs.model
    recorder = Recorder(model, inputs.subject.sampler, tuple(inputs.spec.numbers))
    scores = score_each(detectors, recorder, model.encode([inputs.prompts[0].text]))
    return prompts * sum(part.evaluations for part in scores) + recorder.shared


DETECT = Stage("detect", "detect", in_shards(scoring), _cost)
