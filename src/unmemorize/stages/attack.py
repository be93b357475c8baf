"""Attack a model's training pictures, with controls, and say how many come back for how much work."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from safetensors.torch import save_file

from unmemorize.attack.extraction import CURVE, SEEDS, Judge, Trial, extraction, require_prompts
from unmemorize.core.errors import UserError
from unmemorize.core.hooks import checkpointed
from unmemorize.core.methods import Attack, Subject, parse
from unmemorize.core.model import DiffusionModel
from unmemorize.core.run import Progress, Run, atomic, quiet, write_json
from unmemorize.core.shards import Row, merge_shards, run_shards
from unmemorize.core.specs import AttackSpec
from unmemorize.data.bundle import Bundle
from unmemorize.data.pictures import save_image
from unmemorize.metrics.similarity import References
from unmemorize.report.attack import draw_curves, draw_sheet
from unmemorize.stages.inputs import bundle_of, load_as_asked, record_of, subject_of, text_source, with_sampling
from unmemorize.stages.mitigations import mitigation_of, sources_of
from unmemorize.study.controls import Subjects, choose_subjects
from unmemorize.study.copies import CopyCheck, copy_check
from unmemorize.study.extracted import from_rows, summarise, to_rows

SHARD = 8  # pictures: a killed attack loses no more


def run_attack(spec: AttackSpec, run: Path, progress: Progress = quiet) -> Row:
    """Run or continue an attack in `run`; returns its summary.

    Raises:
        UserError: The model, the mitigation or the pictures cannot be used, a setting is out of range, a prompt to
            start from is not known, or `run` holds another run.
    """
    attack = checked_attack(spec)
    model = load_as_asked(spec)
    spec = with_sampling(spec, model)
    mitigation = mitigation_of(spec.mitigation, model) if spec.mitigation else None
    bundle = bundle_of(spec)
    check, subjects = chosen_subjects(spec, model, bundle)
    subject = subject_of(spec, model)
    ordinary = bundle.ordinary()
    data = {group: pictures.source(group) for group, pictures in subjects.groups.items()}
    data |= {"references": check.source} | sources_of({"mitigation": mitigation} if mitigation else {})
    if spec.ordinary:
        data["ordinary"] = text_source(spec.ordinary, ordinary)
    record = record_of(spec, model, data, check.criterion)
    own = model.encode([caption or "" for caption in subjects.attacked.captions])
    if "ordinary" in attack.needs:
        attack = attack.prepared(prompts=own, ordinary=model.encode(ordinary))
    if mitigation is not None:
        mitigation = mitigation.fitted(
            subject, prompts=own, ordinary=model.encode(ordinary), seeds=range(len(ordinary)), progress=progress
        )
    with Run.open(run, record):
        applied = mitigation.applied(subject) if mitigation else nullcontext(subject)
        with applied as attacked, checkpointed(model.denoiser, spec.checkpointing):
            trial = Trial(curve_of(attack), spec.init, spec.restarts, tuple(range(SEEDS[0], SEEDS[0] + spec.pictures)))
            table = _attack(attacked, subjects, attack, check.against, trial, ordinary, run, progress)
        found = {group: from_rows([row for row in table if row["group"] == group]) for group in subjects.groups}
        facts = {"method": attack.name, "init": spec.init, "restarts": spec.restarts}
        summary = summarise(found, check.criterion, spec.bound) | facts | {"unseen_from": subjects.unseen_from}
        write_json(run / "summary.json", summary)
        draw_curves(summary["curve"], run / "curves.svg")
        draw_sheet(_sheet(table), run)
    return summary


def chosen_subjects(spec: AttackSpec, model: DiffusionModel, bundle: Bundle) -> tuple[CopyCheck, Subjects]:
    """The comparison, and the pictures with their controls."""
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


def _attack(  # noqa: PLR0913
    subject: Subject,
    subjects: Subjects,
    attack: Attack,
    judge: Judge,
    trial: Trial,
    ordinary: Sequence[str],
    run: Path,
    progress: Progress,
) -> list[Row]:
    """One row a picture, restart, kept number of updates and seed."""

    def work(shard: Sequence[tuple[str, int]]) -> list[Row]:
        targets = _joined([subjects.groups[group][[index]] for group, index in shard])
        found, evidence = extraction(subject, targets, attack, judge, trial, ordinary=ordinary)
        ids = [f"{group}-{index:04d}" for group, index in shard]
        for name, images in (("attacked", evidence.attacked), ("original", evidence.original)):
            for key, image in zip(ids, images, strict=True):
                save_image(image, run / "images" / f"{key}-{name}.png")
        for key, image in zip(ids, targets.images, strict=True):
            save_image(image, run / "images" / f"{key}-target.png")
        with atomic(run / "embeds" / f"{ids[0]}.safetensors") as temporary:
            save_file({key: part.contiguous() for key, part in zip(ids, evidence.embeds, strict=True)}, temporary)
        facts = zip(ids, (group for group, _ in shard), targets.captions, strict=True)
        return to_rows(found, [{"id": k, "group": g, "prompt": p, "embeds": ids[0]} for k, g, p in facts])

    items = [(group, i) for group, pictures in subjects.groups.items() for i in range(len(pictures))]
    folder = run / "shards" / "attack"
    for done in run_shards(items, work, folder=folder, size=SHARD):
        progress("attack", done, len(items))
    rows: list[Row] = merge_shards(folder, run / "scores" / "attack.parquet").to_pylist()
    return rows


def _joined(parts: Sequence[References]) -> References:
    names, masks, captions = (
        tuple(v for part in parts for v in getattr(part, f)) for f in ("names", "masks", "captions")
    )
    return References(names, torch.cat([part.pixels for part in parts]), masks, captions)


def _sheet(table: Sequence[Row]) -> dict[str, tuple[float, float]]:
    """For every picture the values of the original prompt's and the attacked one's picture that are shown."""
    last = max(row["step"] for row in table if row["step"] is not None)
    seed = table[0]["seed"]
    original = {row["id"]: row["value"] for row in table if row["step"] is None and row["seed"] == seed}
    found = {r["id"]: r["value"] for r in table if r["step"] == last and r["seed"] == seed and r["restart"] == 0}
    return {key: (original[key], found[key]) for key in found}
