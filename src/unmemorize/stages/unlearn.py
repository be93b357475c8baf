"""Fine-tune memorized pictures out of a model, measure what that did, and write the model with a card that says so."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from unmemorize.attack.dori import Dori
from unmemorize.core.errors import UserError
from unmemorize.core.methods import Subject, Training, Unlearner, settings
from unmemorize.core.model import DiffusionModel
from unmemorize.core.results import Surrogates, Trained
from unmemorize.core.run import (
    Progress,
    Run,
    atomic,
    new_folder,
    quiet,
    require_new,
    write_json,
)
from unmemorize.core.shards import ANEW
from unmemorize.core.specs import MitigateSpec
from unmemorize.core.tensors import read_tensors
from unmemorize.metrics.neighbours import neighbours
from unmemorize.metrics.similarity import References
from unmemorize.report.card import removal_card
from unmemorize.stages.inputs import Inputs, bundle_of
from unmemorize.stages.unlearner import pairs_of, surrogates_of, unlearner_of
from unmemorize.study.copies import copy_check
from unmemorize.study.effects import (
    Judge,
    Subjects,
    attacked_copies,
    attacked_from_both,
    judge_of,
    measure,
    quality,
    rate_of,
)
from unmemorize.study.pairs import Split, hashes, memorized_pictures, ordinary_pictures
from unmemorize.unlearn.loop import Team

CHECKED = 6  # memorized pictures attacked by a check in training, in turn
CHECK_SEEDS = 2  # pictures of each, in a check
STARTS = 2  # of the attacks that judge: the prompts, and N(0, I)
TEST_SEED = 1_000_000  # of the attacks that judge: no attack in training has it


@dataclass(frozen=True)
class _Job:
    """What the steps of a run share."""

    spec: MitigateSpec
    run: Path
    subject: Subject
    team: Team
    judge: Judge
    subjects: Subjects
    split: Split
    progress: Progress

    def once(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Tensors that the first process makes, once a run, and all read."""
        path = self.run / f"{name}.safetensors"
        if self.team.first and not path.exists():
            tensors = {key: value.contiguous().cpu() for key, value in make().items()}
            try:
                with atomic(path) as temporary:
                    save_file(tensors, temporary)
            except SafetensorError as error:
                raise UserError(f"{path}: cannot be written: {error}: make room and start again") from error
        self.team.wait()
        return read_tensors(path, ANEW)


def mitigate(spec: MitigateSpec, out: Path, run: Path, progress: Progress = quiet) -> dict[str, Any]:
    """Write the mitigated model to `out`, keeping checkpoints and measurements in `run`; returns what was measured.

    The same call continues a run that was killed.

    Raises:
        UserError: The model or pictures cannot be used, the model memorized none of them, surrogates are copies, the
            loss is not finite, the disk is full, `out` is there already, or `run` holds another run.
    """
    require_new(out)
    unlearner = unlearner_of(spec)
    team = Team(spec.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    inputs = Inputs.of(trained_in(spec, str(team.device)))
    subjects, judge, split = measures(inputs.spec, inputs.model)
    job = _Job(inputs.spec, run, inputs.subject, team, judge, subjects, split, progress)
    data = {"targets": subjects.memorized.source(spec.targets), "controls": split.train.source(spec.controls)}
    record = inputs.record(data, judge.copies.criterion)
    with Run.open(run, record) if team.first else nullcontext():
        team.wait()
        return _mitigate(job, unlearner, out)


def trained_in(spec: MitigateSpec, device: str) -> MitigateSpec:
    """The settings with the device and the precision that the model is trained in."""
    return dataclasses.replace(spec, device=device, dtype=spec.dtype or "float32")


def _mitigate(job: _Job, unlearner: Unlearner, out: Path) -> dict[str, Any]:
    spec, model = job.spec, job.subject.model
    before = job.once("before", lambda: measure(job.subject, job.subjects, job.judge))
    memorized = before["copies"].any(dim=1).nonzero()[:, 0].tolist()
    if not memorized:
        raise UserError(f"{spec.targets}: the model copies none of them for their captions: nothing to remove")
    targets = job.subjects.memorized[memorized]
    training = Training(
        job.run / "checkpoints",
        surrogates=lambda: _surrogates(job),
        check=lambda update: _held_out_rate(job, targets, update),
        progress=job.progress,
    )
    forget, keep = pairs_of(model, job.subjects.memorized), pairs_of(model, job.split.train)
    trained = unlearner.train(job.subject, forget, keep, training)
    results = _results(job, unlearner, targets, before, trained)
    if job.team.first:
        write_json(job.run / "results.json", results)
        _export(spec, unlearner, model, out, results, targets)
    job.team.wait()
    return results


def measures(spec: MitigateSpec, model: DiffusionModel) -> tuple[Subjects, Judge, Split]:
    """The pictures to measure on, how they are judged, and the ordinary pictures split into trained on and held out."""
    bundle, size = bundle_of(spec), model.image_size
    memorized, split = memorized_pictures(bundle, size), ordinary_pictures(bundle, size)
    compared = "targets" if "targets" in bundle.files and "references" not in bundle.files else "references"
    references = getattr(bundle, compared)(size)
    copies = copy_check(model, references, bundle.source(compared), spec.sscd, spec.recipe)
    near = neighbours(model, split.held_out.prompts, memorized.prompts)
    judge = judge_of(model, copies, tuple(range(spec.pictures)), testbed=bundle.own is not None)
    return Subjects(memorized, split.held_out, split.clusters, near), judge, split


def _surrogates(job: _Job) -> Surrogates:
    """The surrogates, which are made once a run."""

    def make() -> dict[str, Tensor]:
        surrogates = surrogates_of(
            job.spec, job.subject, job.subjects.memorized, job.split.train.prompts, job.judge.copies, job.progress
        )
        return {"latents": surrogates.latents, "stands_for": surrogates.stands_for}

    tensors = job.once("surrogates", make)
    return Surrogates(tensors["latents"].to(job.subject.model.device), tensors["stands_for"])


def _held_out_rate(job: _Job, targets: References, update: int) -> float:
    """The copy rate of attacks from random embeddings on some of the pictures, with seeds that no training saw."""
    count = len(targets)
    first = update * CHECKED
    chosen = targets[sorted({(first + k) % count for k in range(min(CHECKED, count))})]
    judge = dataclasses.replace(job.judge, seeds=job.judge.seeds[:CHECK_SEEDS])
    attack = Dori(updates=job.spec.attack_updates)
    copies = attacked_copies(job.subject, chosen, "random", judge, seed=TEST_SEED // 2 + update, attack=attack)
    return copies.double().mean().item()


def _results(
    job: _Job, unlearner: Unlearner, targets: References, before: dict[str, Tensor], trained: Trained
) -> dict[str, Any]:
    """Everything that was measured, for programs and for the model card."""
    subject, judge = job.subject, job.judge
    after = job.once("after", lambda: measure(subject, job.subjects, judge))
    attack = Dori(updates=job.spec.attack_updates)
    attacks = job.once("attacked", lambda: attacked_from_both(subject, targets, judge, seed=TEST_SEED, attack=attack))
    attacked = {init: rate_of(hits) for init, hits in attacks.items()}
    worst = max(attacked.values(), key=lambda rate: rate[0])
    chosen = before["copies"].any(dim=1)
    return {
        "method": unlearner.name,
        "pictures": len(targets),
        "not_memorized": len(job.subjects.memorized) - len(targets),
        "copy_rate_before": rate_of(before["copies"][chosen]),
        "copy_rate_after": rate_of(after["copies"][chosen]),
        "attacked_copy_rate_after": worst,
        "attacked": attacked,
        "attack_updates": attack.updates,
        "quality": quality(before, after, job.subjects, job.judge),
        "features": "testbed CLIP" if job.judge.alignment else "VAE latents, 4x4 mean",
        "updates": trained.updates,
        "evaluations": trained.evaluations,
        "evaluations_of_checks": trained.checking,
        "seconds": round(trained.seconds),
        "checks": [list(check) for check in trained.checks],
    }


def _export(
    spec: MitigateSpec,
    unlearner: Unlearner,
    model: DiffusionModel,
    out: Path,
    results: dict[str, Any],
    targets: References,
) -> None:
    """The pipeline as a folder, with its own card and a section on what was removed."""
    own = Path(spec.model) / "README.md"
    text = own.read_text(encoding="utf-8", errors="replace") if own.is_file() else ""
    removed = hashes(targets)
    if spec.captions:
        removed = [row | {"text": text} for row, text in zip(removed, targets.prompts, strict=True)]
    given = {"method": unlearner.name, **settings(unlearner), "surrogates": spec.surrogates}
    card = removal_card(text, given, results, removed)
    try:
        with new_folder(out) as temporary:
            model.save(temporary)
            (temporary / "README.md").write_text(card, encoding="utf-8", errors="replace")
    except SafetensorError as error:
        raise UserError(f"{out}: cannot be written: {error}: make room and start again: training is kept") from error
