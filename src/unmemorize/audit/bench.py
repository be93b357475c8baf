"""Rank detectors on prompts whose truth is known, or mitigations on pictures that are copied; one model or several."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from unmemorize.core.errors import UserError
from unmemorize.core.methods import Kind, methods, parse
from unmemorize.core.run import Progress, Run, RunRecord, versions
from unmemorize.core.shards import Row, write_rows
from unmemorize.core.specs import EMBEDDED, BenchSpec, recorded
from unmemorize.data.bundle import Bundle, Own
from unmemorize.data.labels import read_labelled
from unmemorize.data.source import Prompt
from unmemorize.report.bench import SCHEMAS, build_bench
from unmemorize.stages.contend import CONTEND, contested
from unmemorize.stages.detect import DETECT, detectors_of, fitting_prompts, write_prompts
from unmemorize.stages.inputs import Inputs, load_as_asked, prompt_source, with_sampling
from unmemorize.stages.mitigations import require_mitigation
from unmemorize.stages.rank import RANK
from unmemorize.stages.trial import TRIAL, trials, with_methods
from unmemorize.testbed import embedded
from unmemorize.verdict.findings import UNMITIGATED


def run_bench(spec: BenchSpec, run: Path, progress: Progress) -> list[Row]:
    """Run or continue a ranking in `run`; returns its rows and leaves them, a page and a LaTeX table there.

    Raises:
        UserError: A model, the labels or a method cannot be used, no method applies to a model, or `run` holds another
            run.
    """
    chosen, prompts = chosen_of(spec)
    path = run / "scores" / "bench.parquet"
    with Run.open(run, _record(spec, prompts)) as opened:
        if not opened.is_kept:
            rows: list[Row] = []
            for number, model in enumerate(prompts):
                own = replace(chosen, model=model, more=())
                place = run / "models" / f"{number}-{_safe(model)}"
                if spec.kind == "detector":
                    rows += _ranked(own, prompts[model], place, progress)
                else:
                    rows += _tried(own, place, progress)
            write_rows(path, rows, SCHEMAS[spec.kind])
            build_bench(run)
        ranking: list[Row] = pq.read_table(path).to_pylist()
    return ranking


def chosen_of(spec: BenchSpec) -> tuple[BenchSpec, dict[str, list[Prompt]]]:
    """The settings with every method of the kind where none is named, and the labelled prompts by model.

    Raises:
        UserError: The labels or a method cannot be used.
    """
    chosen = replace(spec, method=spec.method or _every(spec.kind))
    _check_methods(chosen)  # or a mistake in one would be told once a model is loaded
    models = (spec.model, *spec.more)
    return chosen, {model: _prompts(model, spec) if spec.kind == "detector" else [] for model in models}


def _every(kind: Kind) -> tuple[str, ...]:
    """The methods of a kind that need no file and no other method."""
    return tuple(name for name in methods(kind) if name not in ("edit", "located"))


def _check_methods(spec: BenchSpec) -> None:
    if spec.kind == "detector":
        detectors_of(spec)
        if spec.attack:
            raise UserError("--attack is for mitigations: name them with --kind mitigation")
        return
    if spec.labels:
        raise UserError("--labels is for detectors: mitigations are tried on pictures: name them with --targets")
    for i, text in enumerate(spec.method):
        if text in spec.method[:i] or text == UNMITIGATED:
            raise UserError(f"--method {text}: is named twice, or stands for no mitigation")
        require_mitigation(text)
        if text.partition(":")[0] in methods("mitigation"):
            parse("mitigation", text)
    if spec.attack:
        parse("attack", spec.attack)


def _prompts(model: str, spec: BenchSpec) -> list[Prompt]:
    if spec.labels:
        return read_labelled(Path(spec.labels), spec.column)
    if model in EMBEDDED:
        return list(embedded.own(model).prompts)
    raise UserError(f"{model}: which prompts are memorized? name a file with a column named memorized with --labels")


def _record(spec: BenchSpec, prompts: dict[str, list[Prompt]]) -> RunRecord:
    """The record of the whole; each model's own, with its weights, lies in its folder."""
    data = {}
    if spec.kind == "detector":
        data["labels"] = prompt_source(spec.labels or spec.model, prompts[spec.model])
    names = ", ".join(prompts)
    return RunRecord(status="running", spec=recorded(spec), versions=versions(), model={"name": names}, data=data)


def _ranked(spec: BenchSpec, prompts: Sequence[Prompt], run: Path, progress: Progress) -> list[Row]:
    """The rows of one model: of its groups, and of the methods that do not apply to it."""
    inputs = labelled_inputs(spec, prompts)
    sources = {"labels": prompt_source(spec.labels or spec.model, prompts)}
    if spec.ordinary:
        sources["ordinary"] = prompt_source(spec.ordinary, fitting_prompts(inputs))
    with Run.open(run, inputs.record(sources)) as opened:
        write_prompts(prompts, run)
        TRIAL.finish(inputs, opened, progress)
        tried = trials(run)
        applicable = [method for method, row in tried.items() if row["reason"] is None]
        if not applicable:
            reasons = "; ".join(f"{method}: {row['reason']}" for method, row in tried.items())
            raise UserError(f"{spec.model}: no method applies to it: {reasons}")
        for stage in (DETECT, RANK):
            stage.finish(with_methods(inputs, applicable), opened, progress)
    rows = pq.read_table(run / "scores" / "ranking.parquet").to_pylist()
    rows += [row for row in tried.values() if row["reason"] is not None]
    return [row | {"model": spec.model} for row in rows]


def labelled_inputs(spec: BenchSpec, prompts: Sequence[Prompt]) -> Inputs:
    """One model, with labelled prompts."""
    model = load_as_asked(spec)
    own = Own(tuple(prompts), Path(), {}, Path())
    files = {"ordinary": spec.ordinary} if spec.ordinary else {}
    return Inputs(with_sampling(spec, model), model, Bundle(spec.model, files, spec.column, own))


def _tried(spec: BenchSpec, run: Path, progress: Progress) -> list[Row]:
    """The rows of one model: without a mitigation, under each, and of those that do not apply to it."""
    inputs = Inputs.of(spec)
    targets = inputs.bundle.targets(inputs.model.image_size)
    sources = {"targets": targets.source(inputs.bundle.source("targets")), "references": inputs.check.source}
    with Run.open(run, inputs.record(sources, inputs.check.criterion)) as opened:
        CONTEND.finish(inputs, opened, progress)
    rows = pq.read_table(run / "scores" / "mitigations.parquet").to_pylist()
    return [row | {"model": spec.model} for row in contested(rows)]


def _safe(model: str) -> str:
    """A model's name as that of a folder."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", Path(model).name)[:60]


def summarised(rows: Sequence[Row]) -> dict[str, Any]:
    """The rows by model, as the command prints them for programs."""
    models: dict[str, Any] = {}
    for row in rows:
        own = models.setdefault(row["model"], {"ranking": [], "not_applicable": {}})
        if row["reason"] is not None:
            own["not_applicable"][row["method"]] = row["reason"]
        else:
            own["ranking"].append({name: value for name, value in row.items() if name not in ("model", "reason")})
    return {"models": models}
