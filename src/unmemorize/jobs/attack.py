"""Attack a model's training pictures, with controls, and say how many come back for how much work."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from unmemorize.attack.adaptive import Adaptive, from_prompts
from unmemorize.attack.dori import Dori, dori
from unmemorize.attack.extraction import CURVE, SEEDS, Judge, Method, Trial, extraction, require_prompts
from unmemorize.attack.high_noise import FromNoise, HighNoise
from unmemorize.core.errors import UserError
from unmemorize.core.hooks import checkpointed
from unmemorize.core.model import DiffusionModel
from unmemorize.core.run import Progress, RunRecord, Source, atomic, digest, open_run, versions, write_json
from unmemorize.core.shards import merge_shards, run_shards
from unmemorize.core.specs import AttackSpec, recorded
from unmemorize.data.pictures import save_image
from unmemorize.jobs.copies import CopyCheck, copy_check
from unmemorize.jobs.extracted import Row, from_rows, summarise, to_rows
from unmemorize.jobs.inputs import load_as_asked, ordinary_of, with_sampling
from unmemorize.jobs.subjects import Subjects, choose_subjects
from unmemorize.metrics.similarity import References
from unmemorize.mitigate.weights import Edit
from unmemorize.models.load import EMBEDDED
from unmemorize.report.attack import draw_curves, draw_sheet

METHODS: dict[str, Dori | Adaptive] = {
    "dori": Dori(),
    "high-noise": HighNoise(),
    "from-noise": FromNoise(),
    "adaptive": Adaptive(),
}
SETTINGS = {"updates": "steps", "lr": "lr", "batch": "batch"}  # options, and what the methods call them
SHARD = 8  # pictures: a killed attack loses no more


def run_attack(spec: AttackSpec, run: Path, progress: Progress = lambda stage, done, total: None) -> Row:
    """Run or continue an attack in `run`; returns its summary.

    Raises:
        UserError: The model, the edit or the pictures cannot be used, a setting is out of range, a prompt to start from
            is not known, or `run` holds another run.
    """
    how = _checked(spec)
    edit = Edit.load(spec.edit) if spec.edit else None
    model = load_as_asked(spec)
    spec = with_sampling(spec, model)
    hashed = model.fingerprint
    if edit is not None and edit.fingerprint != hashed:
        raise UserError(
            f"{spec.edit}: made for another model, or for this one in another precision (--dtype): name its own model"
        )
    references = spec.references or ("" if spec.model in EMBEDDED else spec.targets)
    check = copy_check(model, spec.model, references, spec.sscd, spec.recipe)
    named = {"targets": spec.targets, "controls": spec.controls, "held_out": spec.held_out}
    subjects = choose_subjects(model, spec.model, check, **named, limit=spec.limit)
    for pictures in subjects.groups.values() if spec.init == "prompt" else ():
        require_prompts(pictures)
    open_run(run, record := _record(spec, hashed, subjects, check))
    with edit.applied(model) if edit else nullcontext(), checkpointed(model.denoiser, spec.checkpointing):
        attack = _method(model, subjects, spec, how)
        table = _attack(model, subjects, attack, check.against, spec, run, progress)
    found = {group: from_rows([row for row in table if row["group"] == group]) for group in subjects.groups}
    facts = {"method": spec.method, "init": spec.init, "restarts": spec.restarts, "unseen_from": subjects.unseen_from}
    summary = summarise(found, check.criterion, spec.bound) | facts
    write_json(run / "summary.json", summary)
    draw_curves(summary["curve"], run / "curves.svg")
    draw_sheet(_sheet(table), run)
    record.model_copy(update={"status": "finished"}).save(run)
    return summary


def settings_of(spec: AttackSpec) -> Dori | Adaptive:
    """The method's own, but for what was asked for.

    Raises:
        UserError: There is no such method, it has no such setting, or a number is out of range.
    """
    if spec.method not in METHODS:
        raise UserError(f"{spec.method}: no such attack: choose one of {', '.join(METHODS)}")
    usual = METHODS[spec.method]
    asked = {"updates": spec.updates, "lr": spec.lr, "batch": spec.batch}
    given = {SETTINGS[name]: value for name, value in asked.items() if value is not None}
    for name, value in asked.items():
        if value is not None and not hasattr(usual, SETTINGS[name]):
            raise UserError(f"--{name}: the {spec.method} attack has its own")
        if value is not None and value <= 0:
            raise UserError(f"--{name} {value}: it has to be above 0")
    return dataclasses.replace(usual, **given)  # type: ignore[arg-type]


def trial_of(spec: AttackSpec) -> Trial:
    """How pictures are attacked and judged."""
    last = settings_of(spec).steps
    curve = (last,) if spec.method == "adaptive" else (*(step for step in CURVE if step < last), last)
    seeds = tuple(range(SEEDS[0], SEEDS[0] + spec.pictures))
    return Trial(curve, spec.init, spec.restarts, seeds, spec.steps, spec.guidance)


def _checked(spec: AttackSpec) -> Dori | Adaptive:
    """The attack's settings; what cannot be is refused before anything is read.

    Raises:
        UserError: A setting, the precision or the number of restarts is out of range.
    """
    if not spec.targets and spec.model not in EMBEDDED:
        raise UserError(f"{spec.model}: attack which pictures? name a folder of training pictures with --targets")
    if spec.restarts <= 0:
        raise UserError(f"--restarts {spec.restarts}: it has to be above 0")
    if spec.method == "adaptive" and spec.init != "prompt":
        raise UserError(f"--init {spec.init}: the adaptive attack has all kinds of starts: leave --init out")
    return settings_of(spec)


def _method(model: DiffusionModel, subjects: Subjects, spec: AttackSpec, how: Dori | Adaptive) -> Method:
    """The attack, its settings bound; the adaptive one also starts from ordinary prompts and the pictures' own."""
    if isinstance(how, Dori):
        return partial(dori, how=how)
    ordinary = model.encode(ordinary_of(spec.model, spec.ordinary))
    own = model.encode([caption or "" for caption in subjects.groups["attacked"].captions])
    return partial(from_prompts, pools=(ordinary, ordinary, own, own), how=how)


def _attack(
    model: DiffusionModel,
    subjects: Subjects,
    attack: Method,
    judge: Judge,
    spec: AttackSpec,
    run: Path,
    progress: Progress,
) -> list[Row]:
    """One row a picture, restart, kept number of updates and seed."""
    ordinary = ordinary_of(spec.model, spec.ordinary) if spec.init == "ordinary" else []

    def work(piece: Sequence[tuple[str, int]]) -> list[Row]:
        targets = _joined([subjects.groups[group][[index]] for group, index in piece])
        found, evidence = extraction(model, targets, attack, judge, trial_of(spec), ordinary=ordinary)
        ids = [f"{group}-{index:04d}" for group, index in piece]
        for name, images in (("attacked", evidence.attacked), ("original", evidence.original)):
            for key, image in zip(ids, images, strict=True):
                save_image(image, run / "images" / f"{key}-{name}.png")
        for key, image in zip(ids, targets.images, strict=True):
            save_image(image, run / "images" / f"{key}-target.png")
        with atomic(run / "embeds" / f"{ids[0]}.safetensors") as temporary:
            save_file({key: part.contiguous() for key, part in zip(ids, evidence.embeds, strict=True)}, temporary)
        facts = zip(ids, (group for group, _ in piece), targets.captions, strict=True)
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


def _record(spec: AttackSpec, hashed: str, subjects: Subjects, check: CopyCheck) -> RunRecord:
    data = {group: _source(group, pictures) for group, pictures in subjects.groups.items()}
    if spec.edit:
        path = Path(spec.edit)
        data["edit"] = Source(source=spec.edit, sha256=digest([path.read_bytes()]), count=1)
    if spec.ordinary:
        data["ordinary"] = Source(source=spec.ordinary, sha256=digest([Path(spec.ordinary).read_bytes()]), count=1)
    return RunRecord(
        status="running",
        spec=recorded(spec),
        versions=versions(),
        model={"name": spec.model, "fingerprint": hashed},
        data=data | {"references": check.source},
        criterion=dataclasses.asdict(check.criterion),
    )


def _source(name: str, pictures: References) -> Source:
    facts = repr((pictures.names, pictures.captions)).encode(errors="surrogateescape")
    pixels = digest([facts, *(image.numpy().tobytes() for image in pictures.batches(1))])
    return Source(source=name, sha256=pixels, count=len(pictures))
