"""The stages of an audit, in order. Each reads what is in the run directory and writes its own table there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
from torch import Tensor

from unmemorize.audit.attack import attack_cost, attack_mitigated
from unmemorize.audit.inputs import audited, ordinary, scores_of
from unmemorize.audit.mitigate import COPIED, mitigate_cost, try_mitigations
from unmemorize.audit.stage import UNSEEN, Cost, NotRun, Stage
from unmemorize.core.errors import NotApplicable
from unmemorize.core.model import DiffusionModel
from unmemorize.core.run import Progress
from unmemorize.core.sample import sampling_evaluations
from unmemorize.core.specs import AuditSpec, DetectSpec, ExplainSpec, limited
from unmemorize.data.source import read_references
from unmemorize.jobs.calibrate import LEVEL, calibrate_scores
from unmemorize.jobs.copies import CopyCheck, copy_check, distances, matcher
from unmemorize.jobs.detect import score_prompts
from unmemorize.jobs.explain import explain_prompts
from unmemorize.jobs.inputs import images_folder, subject_of
from unmemorize.jobs.pictures import (
    Row,
    choose,
    compare_held_out,
    generate_pictures,
    reference_name,
    verify_pictures,
)


def run_stages(
    model: DiffusionModel,
    spec: AuditSpec,
    run: Path,
    progress: Progress,
    clock: Callable[[str], AbstractContextManager[None]],
) -> list[dict[str, str]]:
    """Run the stages that are not done; returns what became of each."""
    states = []
    for stage in STAGES:
        state, reason = "done", ""
        try:
            if not stage.done(run):
                with clock(stage.name):
                    stage.work(model, spec, run, progress)
        except NotApplicable as error:
            state, reason = "not applicable", str(error)
        except NotRun as error:
            state, reason = "not run", str(error)
        states.append({"name": stage.name, "state": state, "reason": reason})
    return states


def _scoring(spec: AuditSpec) -> DetectSpec:
    return DetectSpec(
        model=spec.model,
        method=spec.method,
        seeds=spec.seeds,
        seed=spec.seed,
        steps=spec.steps,
        guidance=spec.guidance,
    )


def _detect(model: DiffusionModel, spec: AuditSpec, run: Path, progress: Progress) -> None:
    score_prompts(model, audited(spec), _scoring(spec), run, progress)


def _calibrate(model: DiffusionModel, spec: AuditSpec, run: Path, progress: Progress) -> None:
    prompts = audited(spec)
    calibrate_scores(model, prompts, scores_of(run, len(prompts)), ordinary(spec), _scoring(spec), run, progress)


def _generate(model: DiffusionModel, spec: AuditSpec, run: Path, progress: Progress) -> None:
    prompts = audited(spec)
    chosen = choose(prompts, scores_of(run, len(prompts)), limited(spec.generate, len(prompts)))
    seeds = range(spec.seed, spec.seed + spec.pictures)
    generate_pictures(subject_of(spec, model), chosen, run, progress, seeds=seeds)


def _verify(model: DiffusionModel, spec: AuditSpec, run: Path, progress: Progress) -> None:
    folder = images_folder(spec.model, spec.references)
    if folder is None:
        raise NotRun(UNSEEN)
    _, match = matcher(spec.sscd, spec.recipe, model.device)
    verify_pictures(run, read_references(folder, model.image_size), match)


def _held_out(model: DiffusionModel, spec: AuditSpec, run: Path, progress: Progress) -> None:
    folder = images_folder(spec.model, spec.references)
    if folder is None:
        raise NotRun(UNSEEN)
    references = read_references(folder, model.image_size)
    other = read_references(Path(spec.held_out), model.image_size).pixels if spec.held_out else None
    compare_held_out(run, references, other, distances(spec.sscd, spec.recipe, model.device), _control(spec, run))


def _control(spec: AuditSpec, run: Path) -> set[str]:
    """Prompts known to be ordinary; where none is, those whose score ordinary prompts reach easily."""
    known = {p.id for p in audited(spec) if p.memorable is False}
    calibrated = run / "scores" / "calibrated.parquet"
    if known or not calibrated.exists():
        return known
    return {row["id"] for row in pq.read_table(calibrated).to_pylist() if row["p_value"] > LEVEL}


def _explain(model: DiffusionModel, spec: AuditSpec, run: Path, progress: Progress) -> None:
    prompts = audited(spec)
    means = scores_of(run, len(prompts)).mean(axis=1)
    verified = run / "scores" / "verify.parquet"
    rows = pq.read_table(verified).to_pylist() if verified.exists() else []
    copies = _copies(model, spec, [row for row in rows if row["verdict"] != "none"])
    order = sorted(range(len(prompts)), key=lambda i: (prompts[i].id not in copies, -means[i]))
    chosen = [prompts[i] for i in order[: limited(spec.explain, len(order))]]
    explaining = ExplainSpec(
        model=spec.model,
        method=spec.explainer,
        seeds=spec.seeds,
        seed=spec.seed,
        steps=spec.steps,
        guidance=spec.guidance,
    )
    explain_prompts(model, chosen, run, progress, spec=explaining, copies=copies)


def _copies(model: DiffusionModel, spec: AuditSpec, rows: Sequence[Row]) -> dict[str, Callable[[Tensor], list[bool]]]:
    """By prompt: which of some pictures are copies of the picture that the prompt's first copy is one of."""
    if not rows:
        return {}
    check = copy_check(model, spec.model, spec.references, spec.sscd, spec.recipe)
    place = {reference_name(name): i for i, name in enumerate(check.references.names)}
    nearest: dict[str, str] = {}
    for row in rows:
        nearest.setdefault(row["id"], row["nearest"])
    return {key: partial(_are_copies, check, place[name]) for key, name in nearest.items()}


def _are_copies(check: CopyCheck, target: int, images: Tensor) -> list[bool]:
    matches = check.against(images, check.references[[target] * len(images)])
    return [match.verdict != "none" for match in matches]


def _detect_cost(model: DiffusionModel, spec: AuditSpec, prompts: int) -> Cost:
    return Cost(spec.seeds * (prompts + 1))


def _calibrate_cost(model: DiffusionModel, spec: AuditSpec, prompts: int) -> Cost:
    others = len(ordinary(spec).others)
    return Cost(spec.seeds * (others + 1) if others else 0)


def _generate_cost(model: DiffusionModel, spec: AuditSpec, prompts: int) -> Cost:
    pictures = limited(spec.generate, prompts) * spec.pictures
    calls = sampling_evaluations(model, subject_of(spec, model).sampler)
    return Cost(pictures * calls, pictures=pictures)


def _explain_cost(model: DiffusionModel, spec: AuditSpec, prompts: int) -> Cost:
    """What it costs if a third of the generated prompts give copies: these are generated with and without a word."""
    explained, seeds = limited(spec.explain, prompts), spec.seeds
    evaluations, pictures = 2 * seeds * explained, 0
    if images_folder(spec.model, spec.references) is not None:
        copied = min(explained, max(limited(spec.generate, prompts) // COPIED, 1))
        pictures = 2 * seeds * copied
        calls = sampling_evaluations(model, subject_of(spec, model).sampler)
        evaluations += pictures * calls + 3 * seeds * copied  # the last are the magnitudes of both texts
    return Cost(evaluations, gradients=seeds * explained, pictures=pictures)


STAGES = (
    Stage("detect", "detect", _detect, _detect_cost),
    Stage("calibrate", "calibrated", _calibrate, _calibrate_cost),
    Stage("generate", "images", _generate, _generate_cost),
    Stage("verify", "verify", _verify),
    Stage("held-out", "nearness", _held_out),
    Stage("explain", "explain", _explain, _explain_cost),
    Stage("mitigate", "mitigated", try_mitigations, mitigate_cost),
    Stage("attack", "attack", attack_mitigated, attack_cost),
)
