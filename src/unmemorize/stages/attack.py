"""Attack a model's training pictures, with controls, and say how many come back for how much work."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import pyarrow.parquet as pq
from safetensors.torch import save_file

from unmemorize.attack.extraction import CURVE, Evidence, Trial, extraction, judging_seeds, require_prompts
from unmemorize.core.crew import ALONE, Crew
from unmemorize.core.errors import UserError
from unmemorize.core.hooks import checkpointed
from unmemorize.core.methods import Attack, Mitigation, parse
from unmemorize.core.run import Progress, Run, RunRecord, atomic, quiet, read_json, write_json
from unmemorize.core.shards import Row
from unmemorize.core.specs import AttackSpec
from unmemorize.data.pictures import save_image
from unmemorize.metrics.similarity import References
from unmemorize.report.attack import draw_curves, draw_sheet
from unmemorize.stages.inputs import Inputs, bundle_of, text_source
from unmemorize.stages.mitigations import fit, mitigation_of, sources_of
from unmemorize.stages.stage import Task, Work
from unmemorize.study.controls import Subjects, choose_subjects
from unmemorize.study.copies import CopyCheck, copy_check
from unmemorize.study.extracted import from_rows, summarise, to_rows

SHARD = 8  # pictures: a killed attack loses no more


def run_attack(spec: AttackSpec, run: Path, progress: Progress = quiet, crew: Crew = ALONE) -> Row:
    """Run or continue an attack in `run`; returns its summary.

    Raises:
        UserError: The model, the mitigation or the pictures cannot be used, a setting is out of range, a prompt to
            start from is not known, or `run` holds another run.
        Unfinished: Other parts are not done.
    """
    attack = checked_attack(spec)
    inputs = Inputs.of(spec)
    spec = inputs.spec
    check, subjects = chosen_subjects(inputs)
    mitigation = mitigation_of(spec.mitigation, inputs.model) if spec.mitigation else None
    record = _record(inputs, check, subjects, mitigation)
    # Before the run is opened: a mitigation that cannot be used leaves no run behind.
    work = _attacking(inputs, check, subjects, mitigation, run, progress)
    with Run.open(run, record) as opened:
        if opened.is_kept:
            return read_json(run / "summary.json")
        idle = crew.call(Task(spec, run, attacking, crew.part))
        table = pq.read_table(work.run(run, progress, crew.part, idle)).to_pylist()
        by_group = {group: from_rows([row for row in table if row["group"] == group]) for group in subjects.groups}
        facts = {"method": attack.name, "init": spec.init, "restarts": spec.restarts}
        summary = summarise(by_group, check.criterion, spec.bound) | facts | {"unseen_from": subjects.unseen_from}
        write_json(run / "summary.json", summary)
        draw_curves(summary["curve"], run / "curves.svg")
        draw_sheet(_sheet(table), run)
    return summary


def chosen_subjects(inputs: Inputs) -> tuple[CopyCheck, Subjects]:
    """The comparison, and the pictures with their controls."""
    spec, model, bundle = inputs.spec, inputs.model, inputs.bundle
    compared = "references" if bundle.has("references") else "targets"
    references = getattr(bundle, compared)(model.image_size)
    check = copy_check(model, references, bundle.source(compared), spec.sscd, spec.recipe)
    subjects = choose_subjects(model, bundle, check, limit=spec.limit)
    for pictures in subjects.groups.values() if spec.init == "prompt" else ():
        require_prompts(pictures)
    return check, subjects


def attack_of(method: str, updates: int | None) -> Attack:
    """The attack of that name and settings, with another number of updates where one is asked for.

    Raises:
        UserError: There is no such method, it has no such setting, or a number is out of range.
    """
    attack: Attack = parse("attack", method)
    if updates is None:
        return attack
    try:
        return dataclasses.replace(attack, updates=updates)  # type: ignore[type-var]
    except ValueError as error:
        raise UserError(f"--updates {updates}: {error}") from error


def checked_attack(spec: AttackSpec) -> Attack:
    """The attack; what cannot be is refused before anything is read.

    Raises:
        UserError: A setting, the precision or the number of restarts is out of range.
    """
    if not bundle_of(spec).has("targets"):
        raise UserError(f"{spec.model}: attack which pictures? name a folder of training pictures with --targets")
    if spec.restarts <= 0:
        raise UserError(f"--restarts {spec.restarts}: it has to be above 0")
    attack = attack_of(spec.method, spec.updates)
    if "ordinary" in attack.needs and spec.init != "prompt":
        raise UserError(f"--init {spec.init}: the {attack.name} attack has all kinds of starts: leave --init out")
    return attack


def curve_of(attack: Attack) -> tuple[int, ...]:
    """Numbers of updates after which pictures are made."""
    return (*(update for update in CURVE if update < attack.updates), attack.updates)


def attacking(inputs: Inputs, run: Path, progress: Progress) -> Work[tuple[str, int]]:
    """One row a picture, restart, number of updates and seed in `scores/attack.parquet`; `images/` and `embeds/`.

    Raises:
        UserError: The mitigation or the pictures cannot be used, or a prompt to start from is not known.
    """
    mitigation = mitigation_of(inputs.spec.mitigation, inputs.model) if inputs.spec.mitigation else None
    return _attacking(inputs, *chosen_subjects(inputs), mitigation, run, progress)


def _attacking(
    inputs: Inputs, check: CopyCheck, subjects: Subjects, mitigation: Mitigation | None, run: Path, progress: Progress
) -> Work[tuple[str, int]]:
    spec, model = inputs.spec, inputs.model
    own = model.encode(subjects.attacked.prompts)
    ordinary = inputs.bundle.ordinary()
    attack = prepared(attack_of(spec.method, spec.updates), inputs, subjects)
    if mitigation is not None:
        mitigation = fit(
            mitigation,
            inputs,
            prompts=own,
            ordinary=model.encode(ordinary),
            seeds=range(len(ordinary)),
            progress=progress,
        )
    trial = Trial(curve_of(attack), spec.init, spec.restarts, judging_seeds(spec.pictures))

    def do(shard: Sequence[tuple[str, int]]) -> list[Row]:
        targets = References.joined([subjects.groups[group][[index]] for group, index in shard])
        applied = mitigation.applied(inputs.subject) if mitigation else nullcontext(inputs.subject)
        with applied as subject, checkpointed(model.denoiser, spec.checkpointing):
            extracted, evidence = extraction(subject, targets, attack, check.against, trial, ordinary=ordinary)
        ids = [f"{group}-{index:04d}" for group, index in shard]
        _save_evidence(run, ids, targets, evidence)
        facts = []
        for key, (group, _), caption in zip(ids, shard, targets.captions, strict=True):
            facts.append({"id": key, "group": group, "prompt": caption, "embeds": ids[0]})
        return to_rows(extracted, facts)

    items: list[tuple[str, int]] = []
    for group, pictures in subjects.groups.items():
        items += [(group, index) for index in range(len(pictures))]
    return Work("attack", "scores/attack.parquet", items, do, size=SHARD)


def prepared(attack: Attack, inputs: Inputs, subjects: Subjects) -> Attack:
    """The attack, with what it takes from the captions and from ordinary prompts if it needs these."""
    if "ordinary" not in attack.needs:
        return attack
    captions = inputs.model.encode(subjects.attacked.prompts)
    return attack.prepared(prompts=captions, ordinary=inputs.model.encode(inputs.bundle.ordinary()))


def _save_evidence(run: Path, ids: Sequence[str], targets: References, evidence: Evidence) -> None:
    """What a shard leaves to be seen: `images/`, and in `embeds/` the conditions that the attack ended with."""
    kinds = {"attacked": evidence.attacked, "original": evidence.original, "target": targets.images}
    for kind, images in kinds.items():
        for key, image in zip(ids, images, strict=True):
            save_image(image, run / "images" / f"{key}-{kind}.png")
    with atomic(run / "embeds" / f"{ids[0]}.safetensors") as temporary:
        save_file({key: embeds.contiguous() for key, embeds in zip(ids, evidence.embeds, strict=True)}, temporary)


def _sheet(table: Sequence[Row]) -> dict[str, tuple[float, float]]:
    """For every picture the values of the original prompt's and the attacked one's picture that are shown."""
    last = max(row["step"] for row in table if row["step"] is not None)
    seed = table[0]["seed"]
    original = {row["id"]: row["value"] for row in table if row["step"] is None and row["seed"] == seed}
    attacked = {r["id"]: r["value"] for r in table if r["step"] == last and r["seed"] == seed and r["restart"] == 0}
    return {key: (original[key], attacked[key]) for key in attacked}


def _record(inputs: Inputs, check: CopyCheck, subjects: Subjects, mitigation: Mitigation | None) -> RunRecord:
    data = {group: pictures.source(group) for group, pictures in subjects.groups.items()}
    data |= {"references": check.source} | sources_of({"mitigation": mitigation} if mitigation else {})
    if inputs.spec.ordinary:
        data["ordinary"] = text_source(inputs.spec.ordinary, inputs.bundle.ordinary())
    return inputs.record(data, check.criterion)
