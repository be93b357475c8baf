"""Fine-tune memorized pictures out of a model, measure what that did, and write the model with a card that says so."""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from unmemorize.attack.dori import Dori, dori
from unmemorize.attack.high_noise import HighNoise
from unmemorize.attack.prompt import Words
from unmemorize.core.errors import UserError
from unmemorize.core.model import DiffusionModel
from unmemorize.core.run import (
    Progress,
    RunRecord,
    Source,
    atomic,
    digest,
    new_folder,
    open_run,
    require_new,
    versions,
    write_json,
)
from unmemorize.jobs.card import card
from unmemorize.jobs.copies import copy_check
from unmemorize.jobs.cured import (
    Judge,
    Subjects,
    attacked_copies,
    judge_of,
    latents_of,
    measure,
    quality,
)
from unmemorize.jobs.pairs import (
    PLAN,
    Split,
    captions_of,
    hashes,
    memorized_pictures,
    neighbours,
    ordinary_pictures,
)
from unmemorize.localize.wanda import wanda
from unmemorize.metrics.ranking import rate_interval
from unmemorize.metrics.similarity import References
from unmemorize.mitigate.adversarial import Adversarial, InnerLoop, NoAdversary
from unmemorize.mitigate.deletion import Deletion
from unmemorize.mitigate.denoising import Pairs
from unmemorize.mitigate.erase import Erase, Rounds
from unmemorize.mitigate.finetune import Finetune, Finetuned, Objective, Team, finetune
from unmemorize.mitigate.neggrad import NegGrad
from unmemorize.mitigate.siss import Siss
from unmemorize.mitigate.surrogates import Sampling, Surrogates, make_surrogates
from unmemorize.mitigate.weights import Edit
from unmemorize.models.load import EMBEDDED, fingerprint, load
from unmemorize.models.unet import UNetModel

Method = Literal["erase", "adversarial-finetune", "finetune", "siss", "neggrad", "deletion"]
NEEDS_SURROGATES = ("adversarial-finetune", "finetune", "siss")
PRUNED = (0.1, 0.2, 0.4, 0.6, 0.8)  # of each weight row, by Wanda: the least that makes enough surrogates of a picture
CHECKED = 6  # memorized pictures attacked by a check in training, in turn
WORD_PAIRS = 1000  # made-up captions that `erase` keeps as they are
REHEARSED = 40  # updates of the attacks that `erase` trains against
TEST_SEED = 1_000_000  # of the attacks that judge: no attack in training has it


@dataclass(frozen=True)
class MitigateSpec:
    """What to remove and how; 0 and empty stand for defaults, most of which depend on the model.

    `images` and `ordinary` are folders of pictures with captions or `plan`, `inner` the attack's updates before an
    update of the model; `low_memory` asks for bf16 and gradient checkpointing, `captions` for the removed captions in
    the model card.
    """

    model: str = "testbed"
    method: Method = "adversarial-finetune"
    images: str = PLAN
    ordinary: str = PLAN
    edit: str = ""
    surrogates: int = 10
    updates: int = 640
    lr: float = 0.0
    batch: int = 8
    inner: int = 50
    lora: int = 0
    check_every: int = 100
    seed: int = 0
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    sampling: int = 0
    guidance: float = 7.5
    attack_steps: int = 50
    low_memory: bool = False
    captions: bool = False
    sscd: str = ""
    recipe: str = "sscd-320"

    @property
    def finetune(self) -> Finetune:
        """The loop's settings."""
        return Finetune(
            updates=self.updates,
            lr=self.lr or (2e-4 if self.model in EMBEDDED else 1e-5) * (2 if self.settling else 1),
            settling=self.settling,
            seed=self.seed,
            check_every=self.check_every or self.updates + 1,
            lora=self.lora or None,
            precision="bf16" if self.low_memory else "float32",
            gradient_checkpointing=self.low_memory,
        )

    @property
    def settling(self) -> int:
        """The last updates of `erase`, in which what is ordinary counts most."""
        return self.updates // 4 if self.method == "erase" else 0

    @property
    def steps(self) -> int:
        """Sampling steps."""
        return self.sampling or (16 if self.model in EMBEDDED else 50)


@dataclass(frozen=True)
class _Job:
    """What all parts of a job share."""

    spec: MitigateSpec
    run: Path
    model: UNetModel
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
        return load_file(path)


def mitigate(
    spec: MitigateSpec, out: Path, run: Path, progress: Progress = lambda stage, done, total: None
) -> dict[str, Any]:
    """Write the mitigated model to `out`, keeping checkpoints and measurements in `run`; returns what was measured.

    The same call continues a run that was killed.

    Raises:
        UserError: The model or pictures cannot be used, the model memorized none of them, surrogates are copies, the
            loss is not finite, the disk is full, `out` is there already, or `run` holds another run.
    """
    require_new(out)
    team = Team("cuda" if torch.cuda.is_available() else "cpu")
    model = load(spec.model, dtype=torch.float32, device=str(team.device))
    job = _job(spec, run, model, team, progress)
    before = job.once("before", lambda: measure(model, job.subjects, job.judge))
    memorized = before["copies"].any(dim=1).nonzero()[:, 0].tolist()
    if not memorized:
        raise UserError(f"{spec.images}: the model copies none of these pictures for their captions: nothing to remove")
    targets = job.subjects.memorized[memorized]
    objective = _objective(job, job.subjects.memorized)
    checking = spec.method in ("erase", "adversarial-finetune") and spec.check_every > 0
    check = (lambda update: _held_out_rate(job, targets, update)) if checking else None
    made = finetune(model, objective, spec.finetune, run / "checkpoints", progress=progress, check=check, team=team)
    results = _results(job, targets, before, made)
    if team.first:
        write_json(run / "results.json", results)
        _export(spec, model, out, results, targets)
    team.wait()
    return results


def _job(spec: MitigateSpec, run: Path, model: UNetModel, team: Team, progress: Progress) -> _Job:
    """Read everything and open the run."""
    memorized = memorized_pictures(model, spec.model, spec.images)
    split = ordinary_pictures(model, spec.model, spec.ordinary)
    folder = "" if spec.images == PLAN else spec.images
    copies = copy_check(model, spec.model, folder, spec.sscd, spec.recipe)
    near = neighbours(model, captions_of(split.held_out), captions_of(memorized))
    subjects = Subjects(memorized, split.held_out, split.clusters, near)
    if team.first:
        data = {"images": (spec.images, memorized), "ordinary": (spec.ordinary, split.train)}
        record = RunRecord(
            status="running",
            spec={k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(spec).items()},
            versions=versions(),
            model={"name": spec.model, "fingerprint": fingerprint(model)},
            data={name: _source(*parts) for name, parts in data.items()},
            criterion=dataclasses.asdict(copies.criterion),
        )
        open_run(run, record)
    team.wait()
    judge = judge_of(model, spec.model, copies, spec.seeds, spec.steps, spec.guidance)
    return _Job(spec, run, model, team, judge, subjects, split, progress)


def _source(name: str, pictures: References) -> Source:
    hashed = digest(text.encode() for row in hashes(pictures) for text in row.values())
    return Source(source=name, sha256=hashed, count=len(pictures))


def _objective(job: _Job, targets: References) -> Objective:
    """The method as an objective over all pictures named: what its own prompt does not copy may be copied by others."""
    spec, model = job.spec, job.model
    keep = Deletion(_pairs(model, job.split.train), model.encode([""]).embeds[0], batch=spec.batch, seed=spec.seed)
    memorized = _pairs(model, targets)
    if spec.method == "erase":
        return _erase(job, memorized, keep)
    if spec.method == "deletion":
        return keep
    if spec.method == "neggrad":
        return NegGrad(keep, memorized)
    surrogates = _surrogates(job, targets)
    if spec.method == "siss":
        return Siss(memorized, surrogates, batch=spec.batch, seed=spec.seed)
    if spec.method == "finetune":
        return Adversarial(keep, surrogates, NoAdversary(memorized.embeds))
    how = Dori(steps=spec.inner)
    attack = InnerLoop(lambda m, latents, init, seeds: dori(m, latents, init, seeds=seeds, how=how).found, memorized)
    return Adversarial(keep, surrogates, attack)


def _erase(job: _Job, memorized: Pairs, keep: Deletion) -> Erase:
    """Attacked at high noise, which costs least; triggers are kept from a quarter, a half and the end of the way."""
    model = job.model
    before = {name: p.detach().clone() for name, p in model.denoiser.named_parameters()}
    how = HighNoise(steps=REHEARSED)
    stages = (REHEARSED // 4, REHEARSED // 2, REHEARSED)

    def attack(model: DiffusionModel, latents: Tensor, init: Tensor, seeds: Sequence[int]) -> Tensor:
        found = dori(model, latents, init, seeds=seeds, how=how, keep=stages)
        return torch.stack([found.embeds[stage] for stage in stages])

    captions = model.encode(_kept_captions(job)).embeds
    rounds = Rounds(settle_at=job.spec.updates - job.spec.settling, seed=job.spec.seed)
    return Erase(memorized, keep.ordinary.latents, captions, keep.empty, before, attack, rounds)


def _kept_captions(job: _Job) -> list[str]:
    """The ordinary captions, pairs of words that no memorized caption has, and of all those the nearest thrice.

    What a model makes of words is a prediction like any other: it can be kept without a picture that shows it.
    """
    memorized = captions_of(job.subjects.memorized)
    words = Words(job.model, {word for caption in memorized for word in re.findall(r"\w+", caption)}).words
    draw = random.Random(job.spec.seed)
    texts = captions_of(job.split.train) + [" ".join(draw.choices(words, k=2)) for _ in range(WORD_PAIRS)]
    near = neighbours(job.model, texts, memorized)
    return texts + 2 * [text for text, n in zip(texts, near, strict=True) if n]


def _pairs(model: UNetModel, pictures: References) -> Pairs:
    return Pairs(latents_of(model, pictures.images), model.encode(captions_of(pictures)).embeds)


def _surrogates(job: _Job, targets: References) -> Surrogates:
    """Pictures by the model under the named edit, or pruned by Wanda as far as they need."""
    spec, model, prompts = job.spec, job.model, captions_of(targets)

    def make() -> dict[str, Tensor]:
        found = make_surrogates(
            model,
            prompts,
            job.judge.copies,
            mitigated=(edit.applied(model) for edit in _edits(spec, model, prompts)),
            count=spec.surrogates,
            how=Sampling(spec.steps, spec.guidance),
            progress=job.progress,
        )
        return {"latents": found.latents, "stands_for": found.stands_for}

    found = job.once("surrogates", make)
    return Surrogates(found["latents"].to(model.device), found["stands_for"])


def _edits(spec: MitigateSpec, model: UNetModel, prompts: list[str]) -> Iterator[Edit]:
    """The named edit, or Wanda's, each stronger than the one before."""
    hashed = fingerprint(model)
    if not spec.edit:
        for share in PRUNED:
            yield Edit.of(wanda(model, prompts, sparsity=share), hashed)
        return
    edit = Edit.load(spec.edit)
    if edit.fingerprint != hashed:
        raise UserError(f"{spec.edit}: made for another model, or for this one in another precision: name its own")
    yield edit


def _held_out_rate(job: _Job, targets: References, update: int) -> float:
    """The copy rate of attacks from random embeddings on some of the pictures, with seeds that no training saw."""
    count = len(targets)
    first = update // job.spec.check_every * CHECKED
    chosen = targets[sorted({(first + k) % count for k in range(min(CHECKED, count))})]
    judge = dataclasses.replace(job.judge, seeds=job.spec.seeds[:2])
    how = Dori(steps=job.spec.attack_steps)
    found = attacked_copies(job.model, chosen, "random", judge, seed=TEST_SEED // 2 + update, how=how)
    return found.double().mean().item()


def _results(job: _Job, targets: References, before: dict[str, Tensor], made: Finetuned) -> dict[str, Any]:
    """Everything that was measured, for programs and for the model card."""
    spec, model = job.spec, job.model
    after = job.once("after", lambda: measure(model, job.subjects, job.judge))
    how = Dori(steps=spec.attack_steps)
    found = job.once(
        "attacked",
        lambda: {
            init: attacked_copies(model, targets, init, job.judge, seed=TEST_SEED, how=how)
            for init in ("prompt", "random")
        },
    )
    attacked = {init: _rate(hits) for init, hits in found.items()}
    worst = max(attacked.values(), key=lambda rate: rate[0])
    chosen = before["copies"].any(dim=1)
    return {
        "method": spec.method,
        "pictures": len(targets),
        "not_memorized": len(job.subjects.memorized) - len(targets),
        "copy_rate_before": _rate(before["copies"][chosen]),
        "copy_rate_after": _rate(after["copies"][chosen]),
        "attacked_copy_rate_after": worst,
        "attacked": attacked,
        "quality": quality(before, after, job.subjects, job.judge),
        "features": "testbed CLIP" if job.judge.alignment else "VAE latents, 4x4 mean",
        "updates": made.updates,
        "evaluations": made.evaluations,
        "evaluations_of_checks": made.checking,
        "checks": [list(check) for check in made.checks],
    }


def _rate(hits: Tensor) -> list[float]:
    """Share of copies with its 95% interval over pictures."""
    found = rate_interval(hits.sum(1).tolist(), [hits.shape[1]] * len(hits))
    return [found.value, found.low, found.high]


def _export(spec: MitigateSpec, model: UNetModel, out: Path, results: dict[str, Any], targets: References) -> None:
    """The pipeline as a folder, with its own card and a section on what was removed."""
    own = Path(spec.model) / "README.md"
    text = own.read_text(encoding="utf-8", errors="replace") if own.is_file() else ""
    removed = hashes(targets)
    if spec.captions:
        removed = [row | {"text": text} for row, text in zip(removed, captions_of(targets), strict=True)]
    try:
        with new_folder(out) as temporary:
            model.pipe.save_pretrained(temporary)
            written = card(text, spec, results, removed)
            (temporary / "README.md").write_text(written, encoding="utf-8", errors="replace")
    except SafetensorError as error:
        raise UserError(f"{out}: cannot be written: {error}: make room and start again: training is kept") from error
