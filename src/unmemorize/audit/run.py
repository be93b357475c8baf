"""Run an audit in a directory: a killed one continues where it was and ends with the same bytes."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from unmemorize.audit.attack import write_outcomes
from unmemorize.audit.inputs import audited, ordinary, scores_of
from unmemorize.audit.mitigate import mitigations
from unmemorize.audit.stages import run_stages
from unmemorize.core.criteria import Criterion
from unmemorize.core.errors import UserError
from unmemorize.core.model import DiffusionModel
from unmemorize.core.run import Progress, RunRecord, Source, digest, open_run, versions, write_json
from unmemorize.core.sample import sampling_evaluations
from unmemorize.core.specs import AuditSpec, recorded
from unmemorize.data.source import Prompt, read_references
from unmemorize.jobs.copies import LARGE, matcher
from unmemorize.jobs.inputs import images_folder, load_as_asked, prompt_source, subject_of, with_sampling
from unmemorize.jobs.mitigations import mitigation_of
from unmemorize.metrics.similarity import References
from unmemorize.mitigate.tuned import Tuned
from unmemorize.report.build import Evidence, build_report
from unmemorize.verdict.summary import Basis, summarise


def run_audit(
    spec: AuditSpec,
    run: Path,
    progress: Progress = lambda stage, done, total: None,
    *,
    evidence: Evidence = "full",
) -> dict[str, Any]:
    """Run or continue an audit in `run`; returns its summary and leaves `report.html` and `model-card.md` there.

    `evidence` says how much of the copied pictures the page shows.

    Raises:
        UserError: The model, the prompts, the pictures or the SSCD file cannot be used, or `run` holds another run.
    """
    prompts = audited(spec)
    criterion, _ = matcher(spec.sscd, spec.recipe)
    model = load_as_asked(spec)
    spec = with_sampling(spec, model)
    record = _record(spec, model, prompts, criterion)
    open_run(run, record)
    states = run_stages(model, spec, run, progress, lambda stage: _timed(run, stage))
    write_outcomes(run)
    costs = _evaluations(run, model, spec)
    summary = summarise(run, prompts, scores_of(run, len(prompts)), states, costs, _basis(model, spec))
    write_json(run / "summary.json", summary)
    record.model_copy(update={"status": "finished"}).save(run)
    build_report(run, evidence=evidence)
    return summary


def _record(spec: AuditSpec, model: DiffusionModel, prompts: Sequence[Prompt], criterion: Criterion) -> RunRecord:
    data = {"prompts": prompt_source(spec.prompts or spec.model, prompts)}
    others = ordinary(spec).others
    if others:
        data["ordinary"] = prompt_source(spec.ordinary or "plain descriptions", others)
    folder = images_folder(spec.model, spec.references)
    if folder and not spec.sscd and max(model.image_size) >= LARGE:
        raise UserError(
            f"pictures of {max(model.image_size)} px are compared by a copy-detection network: name its file with "
            "--sscd, or leave out --references to score only"
        )
    if folder:
        data["references"] = _picture_source(spec.references or spec.model, read_references(folder, model.image_size))
    if folder and spec.held_out:
        pictures = read_references(Path(spec.held_out), model.image_size)
        data["held_out"] = _picture_source(spec.held_out, pictures)
    for name, text in mitigations(spec).items():
        mitigation = mitigation_of(text, model)
        if isinstance(mitigation, Tuned):
            data[f"mitigated {name}"] = Source(source=text, sha256=mitigation.fingerprint, count=1)
    return RunRecord(
        status="running",
        spec=recorded(spec),
        versions=versions(),
        model={"name": model.name, "fingerprint": model.fingerprint},
        data=data,
        criterion=dataclasses.asdict(criterion),
    )


def _basis(model: DiffusionModel, spec: AuditSpec) -> Basis:
    """What generated pictures were compared with. A copy-detection network's verdict knows no templates."""
    folder = images_folder(spec.model, spec.references)
    if folder is None:
        return Basis(spec.bound)
    masks = read_references(folder, model.image_size).masks
    return Basis(spec.bound, len(masks), None if spec.sscd else sum(mask is not None for mask in masks))


def _picture_source(source: str, pictures: References) -> Source:
    facts = repr((pictures.names, pictures.masks, pictures.captions)).encode(errors="surrogateescape")
    pixels = digest([facts, *(image.numpy().tobytes() for image in pictures.batches(1))])
    return Source(source=source, sha256=pixels, count=len(pictures.names))


@contextmanager
def _timed(run: Path, stage: str) -> Iterator[None]:
    """Add the wall seconds of a stage to `timing.json`, apart from what is reproducible."""
    path = run / "timing.json"
    fresh: dict[str, Any] = {"started": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": {}}
    timing = json.loads(path.read_text(encoding="utf-8")) if path.exists() else fresh
    since = time.perf_counter()
    try:
        yield
    finally:
        seconds = timing["seconds"]
        seconds[stage] = round(seconds.get(stage, 0) + time.perf_counter() - since, 2)
        write_json(path, timing)


def _evaluations(run: Path, model: DiffusionModel, spec: AuditSpec) -> dict[str, int]:
    """Denoiser evaluations by stage, from what the tables say was done."""
    pictures = pq.read_metadata(run / "scores" / "images.parquet").num_rows
    calls = sampling_evaluations(model, subject_of(spec, model).sampler)
    once = spec.seeds  # the unconditional predictions that scoring shares
    spent = {
        "detect": _spent(run, "detect", once),
        "calibrate": _spent(run, "ordinary", once),
        "generate": pictures * calls,
        "explain": _spent(run, "explain"),
        "mitigate": _spent(run, "mitigated") + _spent(run, "mitigated", column="measuring"),
        "attack": _spent(run, "attack", column="spent"),
    }
    return {stage: count for stage, count in spent.items() if count}


def _spent(run: Path, table: str, more: int = 0, column: str = "evaluations") -> int:
    path = run / "scores" / f"{table}.parquet"
    return round(sum(pq.read_table(path)[column].to_pylist())) + more if path.exists() else 0
