"""The stages of an audit, in order. Each reads what is in the run directory and writes its own table there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
from torch import Tensor

from unmemorize.audit.attack import attack_cost, attack_mitigated
from unmemorize.audit.inputs import Inputs, NotRun, scores_of
from unmemorize.audit.mitigate import COPIED, mitigate_cost, try_mitigations
from unmemorize.audit.stage import Cost, Stage
from unmemorize.core.errors import NotApplicable
from unmemorize.core.run import Progress, Run
from unmemorize.core.sample import sampling_evaluations
from unmemorize.core.specs import AuditSpec, DetectSpec, ExplainSpec, limited
from unmemorize.jobs.calibrate import LEVEL, calibrate_scores
from unmemorize.jobs.copies import CopyCheck, distances
from unmemorize.jobs.detect import score_prompts
from unmemorize.jobs.explain import explain_prompts
from unmemorize.jobs.pictures import (
    Row,
    choose,
    compare_held_out,
    generate_pictures,
    reference_name,
    verify_pictures,
)


def run_stages(inputs: Inputs, run: Run, progress: Progress) -> list[dict[str, str]]:
    """Run the stages that are not done; returns what became of each."""
    states = []
    for stage in STAGES:
        state, reason = "done", ""
        try:
            if not stage.done(run.folder):
                with run.timed(stage.name):
                    stage.work(inputs, run.folder, progress)
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


def _detect(inputs: Inputs, run: Path, progress: Progress) -> None:
    score_prompts(inputs.model, inputs.prompts, _scoring(inputs.spec), run, progress)


def _calibrate(inputs: Inputs, run: Path, progress: Progress) -> None:
    prompts, scoring = inputs.prompts, _scoring(inputs.spec)
    scores = scores_of(run, len(prompts))
    calibrate_scores(inputs.model, prompts, scores, inputs.ordinary, scoring, run, progress)


def _generate(inputs: Inputs, run: Path, progress: Progress) -> None:
    spec, prompts = inputs.spec, inputs.prompts
    chosen = choose(prompts, scores_of(run, len(prompts)), limited(spec.generate, len(prompts)))
    seeds = range(spec.seed, spec.seed + spec.pictures)
    generate_pictures(inputs.subject, chosen, run, progress, seeds=seeds)


def _verify(inputs: Inputs, run: Path, progress: Progress) -> None:
    verify_pictures(run, inputs.check)


def _held_out(inputs: Inputs, run: Path, progress: Progress) -> None:
    spec, references = inputs.spec, inputs.references
    other = inputs.bundle.held_out(inputs.model.image_size)
    plain = distances(spec.sscd, spec.recipe, inputs.model.device)
    compare_held_out(run, references, None if other is None else other.pixels, plain, _control(inputs, run))


def _control(inputs: Inputs, run: Path) -> set[str]:
    """Prompts known to be ordinary; where none is, those whose score ordinary prompts reach easily."""
    known = {p.id for p in inputs.prompts if p.memorable is False}
    calibrated = run / "scores" / "calibrated.parquet"
    if known or not calibrated.exists():
        return known
    return {row["id"] for row in pq.read_table(calibrated).to_pylist() if row["p_value"] > LEVEL}


def _explain(inputs: Inputs, run: Path, progress: Progress) -> None:
    spec, prompts = inputs.spec, inputs.prompts
    means = scores_of(run, len(prompts)).mean(axis=1)
    verified = run / "scores" / "verify.parquet"
    rows = pq.read_table(verified).to_pylist() if verified.exists() else []
    copies = _copies(inputs, [row for row in rows if row["verdict"] != "none"])
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
    explain_prompts(inputs.model, chosen, run, progress, spec=explaining, copies=copies)


def _copies(inputs: Inputs, rows: Sequence[Row]) -> dict[str, Callable[[Tensor], list[bool]]]:
    """By prompt: which of some pictures are copies of the picture that the prompt's first copy is one of."""
    if not rows:
        return {}
    check = inputs.check
    place = {reference_name(name): i for i, name in enumerate(check.references.names)}
    nearest: dict[str, str] = {}
    for row in rows:
        nearest.setdefault(row["id"], row["nearest"])
    return {key: partial(_are_copies, check, place[name]) for key, name in nearest.items()}


def _are_copies(check: CopyCheck, target: int, images: Tensor) -> list[bool]:
    matches = check.against(images, check.references[[target] * len(images)])
    return [match.verdict != "none" for match in matches]


def _detect_cost(inputs: Inputs) -> Cost:
    return Cost(inputs.spec.seeds * (len(inputs.prompts) + 1))


def _calibrate_cost(inputs: Inputs) -> Cost:
    others = len(inputs.ordinary.others)
    return Cost(inputs.spec.seeds * (others + 1) if others else 0)


def _generate_cost(inputs: Inputs) -> Cost:
    pictures = limited(inputs.spec.generate, len(inputs.prompts)) * inputs.spec.pictures
    calls = sampling_evaluations(inputs.model, inputs.subject.sampler)
    return Cost(pictures * calls, pictures=pictures)


def _explain_cost(inputs: Inputs) -> Cost:
    """What it costs if a third of the generated prompts give copies: these are generated with and without a word."""
    spec, prompts = inputs.spec, len(inputs.prompts)
    explained, seeds = limited(spec.explain, prompts), spec.seeds
    evaluations, pictures = 2 * seeds * explained, 0
    if inputs.bundle.has("references"):
        copied = min(explained, max(limited(spec.generate, prompts) // COPIED, 1))
        pictures = 2 * seeds * copied
        calls = sampling_evaluations(inputs.model, inputs.subject.sampler)
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
