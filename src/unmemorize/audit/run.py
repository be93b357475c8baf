"""Run an audit in a directory: a killed one continues where it was and ends with the same bytes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from unmemorize.audit.plan import STAGES
from unmemorize.core.crew import ALONE, Crew
from unmemorize.core.methods import parse
from unmemorize.core.run import Progress, Run, RunRecord, read_json, write_json
from unmemorize.core.sample import sampling_evaluations
from unmemorize.core.shards import require_whole
from unmemorize.core.specs import AuditSpec
from unmemorize.metrics.similarity import PIXELS
from unmemorize.report.build import Evidence, build_report
from unmemorize.stages.attack_mitigated import write_outcomes
from unmemorize.stages.detect import detectors_of, write_prompts
from unmemorize.stages.explain import explainer_saying
from unmemorize.stages.inputs import Inputs, prompt_source, scores_of
from unmemorize.stages.mitigate import left_out, mitigations_of
from unmemorize.stages.mitigations import UNKNOWN, mitigation_of, sources_of
from unmemorize.stages.stage import run_stages
from unmemorize.study.copies import check_network
from unmemorize.verdict.summary import Basis, summarise

log = logging.getLogger(__name__)


def run_audit(
    spec: AuditSpec,
    run: Path,
    progress: Progress = lambda stage, done, total: None,
    *,
    evidence: Evidence = "full",
    crew: Crew = ALONE,
) -> dict[str, Any]:
    """Run or continue an audit in `run`; returns its summary and leaves `report.html` and `model-card.md` there.

    `evidence` says how much of the copied pictures the page shows, `crew` who does the work.

    Raises:
        UserError: The model, the prompts, the pictures or the SSCD file cannot be used, or `run` holds another run.
    """
    check_network(spec.sscd, spec.recipe)
    _check_methods(spec)
    inputs = Inputs.of(spec)
    for name in left_out(inputs):
        log.warning("%s is not tried: %s", name, UNKNOWN)
    prompts = inputs.prompts
    with Run.open(run, _record(inputs)) as opened:
        require_whole(run / "scores")
        if opened.is_kept:
            return read_json(run / "summary.json")
        write_prompts(prompts, run)
        states = run_stages(STAGES, inputs, opened, progress, crew)
        write_outcomes(run)
        costs = _evaluations(run, inputs)
        summary = summarise(run, prompts, scores_of(run, len(prompts)), states, costs, _basis(inputs))
        write_json(run / "summary.json", summary)
    build_report(run, evidence=evidence)
    return summary


def _check_methods(spec: AuditSpec) -> None:
    """Refuse a method that does not exist or cannot do what it is named for before anything is loaded."""
    detectors_of(spec)
    parse("attack", spec.attack_method)
    explainer_saying("--explainer", spec.explainer, "words")
    if spec.regions:
        explainer_saying("--regions", spec.regions, "regions")


def _record(inputs: Inputs) -> RunRecord:
    model, bundle = inputs.model, inputs.bundle
    data = {"prompts": prompt_source(bundle.source("prompts"), inputs.prompts)}
    unlisted = inputs.ordinary.unlisted
    if unlisted:
        data["ordinary"] = prompt_source(bundle.source("ordinary", "plain descriptions"), unlisted)
    criterion = PIXELS
    if bundle.has("references"):
        criterion = inputs.check.criterion
        data["references"] = inputs.check.source
        held_out = bundle.held_out(model.image_size)
        if held_out is not None:
            data["held_out"] = held_out.source(bundle.source("held_out"))
    tried = mitigations_of(inputs)
    data |= sources_of({f"mitigated {name}": mitigation_of(text, model) for name, text in tried.items()})
    return inputs.record(data, criterion)


def _basis(inputs: Inputs) -> Basis:
    """What generated pictures were compared with. Only that of small pictures, pixel by pixel, knows templates."""
    spec = inputs.spec
    if not inputs.bundle.has("references"):
        return Basis(spec.bound)
    masks, criterion = inputs.references.masks, inputs.check.criterion
    templates = sum(mask is not None for mask in masks) if criterion == PIXELS else None
    return Basis(spec.bound, len(masks), templates, criterion)


def _evaluations(run: Path, inputs: Inputs) -> dict[str, int]:
    """Denoiser evaluations by stage, from what the tables say was done."""
    pictures = pq.read_metadata(run / "scores" / "images.parquet").num_rows
    calls = sampling_evaluations(inputs.model, inputs.subject.sampler)
    once = inputs.spec.seeds  # the unconditional predictions that scoring shares
    spent = {
        "detect": _spent(run, "detect", once) + _spent(run, "plain"),
        "calibrate": _spent(run, "ordinary", once),
        "generate": pictures * calls,
        "explain": _spent(run, "explain"),
        "regions": _spent(run, "regions"),
        "mitigate": _spent(run, "mitigated") + _spent(run, "mitigated", column="measuring"),
        "attack": _spent(run, "attack", column="spent"),
    }
    return {stage: count for stage, count in spent.items() if count}


def _spent(run: Path, table: str, more: int = 0, column: str = "evaluations") -> int:
    path = run / "scores" / f"{table}.parquet"
    return round(sum(pq.read_table(path)[column].to_pylist())) + more if path.exists() else 0
