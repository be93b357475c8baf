"""The stage that mitigates: edits of the model and models cured before, tried with the prompts that gave copies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import torch
from torch import Tensor

from unmemorize.attack.extraction import SEEDS
from unmemorize.audit.inputs import ordinary_scores
from unmemorize.audit.stage import UNSEEN, Cost, NotRun
from unmemorize.core.choose import evenly
from unmemorize.core.errors import NotApplicable, UserError
from unmemorize.core.hooks import replaced
from unmemorize.core.model import DiffusionModel
from unmemorize.core.results import Localization
from unmemorize.core.run import Progress
from unmemorize.core.sample import generate, sampling_evaluations
from unmemorize.core.shards import merge_shards, run_shards
from unmemorize.core.specs import AuditSpec, limited
from unmemorize.data.pictures import load_image, save_image
from unmemorize.data.source import read_references
from unmemorize.jobs.copies import copy_check
from unmemorize.jobs.cured import Judge, copies_of, judge_of, pictures
from unmemorize.jobs.inputs import images_folder, ordinary_of, prompts_of
from unmemorize.jobs.pictures import Row, reference_name
from unmemorize.jobs.subjects import spread
from unmemorize.localize.nemo import nemo
from unmemorize.localize.reference import SEEDS as REFERENCE_SEEDS
from unmemorize.localize.reference import reference
from unmemorize.localize.wanda import CALLS, PRESETS, wanda
from unmemorize.metrics.ranking import share_interval
from unmemorize.metrics.similarity import References
from unmemorize.metrics.ssim import scales_for, ssim
from unmemorize.mitigate.prompt import generate_guarded, limits_of
from unmemorize.mitigate.weights import Edit
from unmemorize.models.load import EMBEDDED, load
from unmemorize.verdict.findings import UNMITIGATED

PRUNERS = ("wanda", "nemo")
ON_CALLS = ("guard",)  # these change what is made of a prompt, not the model: an attack on the model never meets them
METHODS = (*ON_CALLS, *PRUNERS)
EMBEDDED_SPARSITY = 0.4  # on the testbed less hides little: docs/pruning.md
ORDINARY = 12  # pictures of ordinary prompts, by which quality is compared
USUAL = 150  # ordinary prompts that NeMo compares with
COPIED = 3  # a forecast takes one in so many prompts to give a copy
SEARCH = 2000  # evaluations of NeMo a prompt, about
FALSE_ALARMS = 0.01  # of the guard, where there are ordinary prompts enough
LOWERING = 10  # updates of an embedding by the guard, at most


@dataclass(frozen=True)
class Copies:
    """The prompts that gave copies, and the copied pictures to look at, each with such a prompt as its caption."""

    prompts: tuple[str, ...]
    pictures: References


def mitigations(spec: AuditSpec) -> dict[str, str]:
    """What to try, by name: empty for a method, the model for one that was cured before.

    Raises:
        UserError: There is no such method, or two have one name.
    """
    asked = [name for name in spec.mitigation if name in METHODS]
    folders = [name for name in spec.mitigation if name not in METHODS]
    unknown = [name for name in folders if not Path(name).is_dir()]
    if unknown:
        raise UserError(
            f"--mitigation {unknown[0]}: no such method, and no folder of a model: choose of {', '.join(METHODS)}, none"
        )
    names = [Path(folder).resolve().name.encode("utf-8", "backslashreplace").decode() for folder in folders]
    if len(set(asked)) < len(asked) or len({*METHODS, *names, UNMITIGATED}) <= len(METHODS) + len(names):
        raise UserError(f"--mitigation {', '.join(folders)}: two have one name, or a method's: rename the folder")
    return dict.fromkeys(asked, "") | dict(zip(names, folders, strict=True))


def try_mitigations(model: DiffusionModel, spec: AuditSpec, run: Path, progress: Progress) -> None:
    """Write `scores/mitigated.parquet`, a row for the model as it came and for each mitigation; edits go to `edits/`.

    Raises:
        NotApplicable: Nothing was copied, or the model lacks the layers that a method prunes.
        NotRun: No mitigation is asked for, or there are no training pictures.
    """
    tried = mitigations(spec)
    if not tried:
        raise NotRun("no mitigation was asked for: name one with --mitigation")
    copies = copied(spec, run, model.image_size)
    check = copy_check(model, spec.model, spec.references, spec.sscd, spec.recipe)
    judge = judge_of(model, spec.model, check, attack_seeds(spec), spec.steps, spec.guidance)
    ordinary = _ordinary(spec, ORDINARY)
    weights = tuned_weights(model, tried)

    def work(piece: Sequence[str]) -> list[Row]:
        return [outcome(name) for name in piece]

    def outcome(name: str) -> Row:
        cost = 0
        if name in PRUNERS:
            found = _located(model, spec, name, copies.prompts, progress)
            Edit.of(found, model.fingerprint).save(_edit(run, name))
            cost = found.evaluations
        with mitigated(model, run, name, weights.get(name)) as changed:
            how = replace(judge, generate=generator_of(spec, run, name))
            with changed.counted() as measuring:
                row = _measured(changed, copies.pictures, ordinary, how, run / "mitigated", name)
        return {"name": name} | row | {"evaluations": cost, "measuring": measuring.forward}

    names = [UNMITIGATED, *tried]
    folder = run / "shards" / "mitigate"
    for done in run_shards(names, work, folder=folder, size=1, in_order=True):  # all need the pictures of the first
        progress("mitigate", done, len(names))
    merge_shards(folder, run / "scores" / "mitigated.parquet")


def copied(spec: AuditSpec, run: Path, size: tuple[int, int]) -> Copies:
    """What the audit found copied: of the pictures the verbatim ones, where there are any, each once, evenly chosen.

    Raises:
        NotApplicable: Nothing was copied.
        NotRun: There are no training pictures to compare with.
    """
    table, folder = run / "scores" / "verify.parquet", images_folder(spec.model, spec.references)
    if folder is None or not table.exists():
        raise NotRun(UNSEEN)
    rows = [row for row in pq.read_table(table).to_pylist() if row["verdict"] != "none"]
    if not rows:
        raise NotApplicable("nothing was copied")
    texts = {p.id: p.text for p in prompts_of(spec.model, spec.prompts, spec.column)}
    prompts = tuple(dict.fromkeys(texts[row["id"]] for row in rows))
    first: dict[str, str] = {}
    for row in [row for row in rows if row["verdict"] == "verbatim"] or rows:
        if texts[row["id"]] not in first.values():
            first.setdefault(row["nearest"], texts[row["id"]])
    references = read_references(folder, size)
    place = {reference_name(name): i for i, name in enumerate(references.names)}
    found = replace(references[[place[name] for name in first]], captions=tuple(first.values()))
    return Copies(prompts, spread(found, limited(spec.attack, len(found))))


def attack_seeds(spec: AuditSpec) -> tuple[int, ...]:
    """Seeds that mitigations and attacks are judged on: none that the audit generated with."""
    return tuple(SEEDS[0] + k for k in range(spec.pictures))


def tuned_weights(model: DiffusionModel, tried: Mapping[str, str]) -> dict[str, dict[str, Tensor]]:
    """By name the weights of the denoisers that were tuned before, on the CPU.

    Raises:
        UserError: A folder cannot be loaded.
    """
    return {name: _weights(_on_cpu(model, folder)) for name, folder in tried.items() if folder}


def tuned_fingerprint(model: DiffusionModel, folder: str) -> str:
    """The fingerprint of a tuned model, which is the model's own with other weights in its denoiser.

    Raises:
        UserError: It cannot be loaded, or differs in more.
    """
    tuned = _on_cpu(model, folder)
    weights = _weights(tuned)
    own = {name: weight.shape for name, weight in model.denoiser.named_parameters()}
    if own != {name: weight.shape for name, weight in weights.items()}:
        raise UserError(f"{folder}: its denoiser has other layers than that of {model.name}: name a tuned copy of it")
    fingerprint = tuned.fingerprint
    with replaced(model.denoiser, weights):
        if model.fingerprint != fingerprint:
            raise UserError(
                f"{folder}: its text encoder, VAE or noise schedule is not that of {model.name}: name a model of which "
                "only the denoiser was tuned"
            )
    return fingerprint


def _on_cpu(model: DiffusionModel, folder: str) -> DiffusionModel:
    return load(folder, dtype=next(model.denoiser.parameters()).dtype, device="cpu")


def _weights(model: DiffusionModel) -> dict[str, Tensor]:
    return {name: weight.detach() for name, weight in model.denoiser.named_parameters()}


@contextmanager
def mitigated(
    model: DiffusionModel, run: Path, name: str, weights: Mapping[str, Tensor] | None
) -> Iterator[DiffusionModel]:
    """The model under a mitigation that was made, or with a tuned denoiser's weights, for the length of a block."""
    if weights is not None:
        with replaced(model.denoiser, weights):
            yield model
    elif name not in PRUNERS:
        yield model
    else:
        with Edit.load(_edit(run, name)).applied(model):
            yield model


def generator_of(spec: AuditSpec, run: Path, name: str) -> Callable[..., Tensor]:
    """What makes pictures under a mitigation: the guard acts on calls, not on the model.

    Its limits come from the scores that calibrate the verdict. A share of false alarms that so few prompts cannot
    promise is raised to the least that they can, 1 / (n + 1).
    """
    if name not in ON_CALLS:
        return generate
    scores = ordinary_scores(spec, run).tolist()
    limits = limits_of(scores, false_alarms=max(FALSE_ALARMS, 1 / (len(scores) + 1)))
    return partial(generate_guarded, limits=limits, iterations=LOWERING)


def _edit(run: Path, name: str) -> Path:
    return run / "edits" / f"{name}.safetensors"


def _located(
    model: DiffusionModel, spec: AuditSpec, name: str, prompts: Sequence[str], progress: Progress
) -> Localization:
    if name == "wanda":
        share = spec.sparsity or (EMBEDDED_SPARSITY if spec.model in EMBEDDED else PRESETS["strong"])
        return wanda(model, prompts, sparsity=share, progress=progress)
    usual = reference(model, _ordinary(spec, USUAL), progress=progress)
    found = nemo(model, prompts, usual, progress=progress)
    return replace(found, evaluations=found.evaluations + usual.evaluations)


def _ordinary(spec: AuditSpec, count: int) -> list[str]:
    texts = ordinary_of(spec.model, spec.ordinary, spec.column)
    return [texts[i] for i in evenly(len(texts), count)]


def _measured(
    model: DiffusionModel, targets: References, ordinary: Sequence[str], judge: Judge, folder: Path, name: str
) -> Row:
    """Copies for the prompts, and how ordinary prompts' pictures compare with the unmitigated model's."""
    prompts = [caption or "" for caption in targets.captions]
    copies = copies_of(model, model.encode(prompts), targets, judge)
    rate = share_interval(copies)
    made = pictures(model, model.encode(ordinary), range(len(ordinary)), judge)
    for k, image in enumerate(made):
        save_image(image, folder / name / f"{k:03d}.png")
    before, after = (_saved(folder / key, len(made)) for key in (UNMITIGATED, name))
    fits = None if judge.alignment is None else judge.alignment(after, ordinary).mean().item()
    return {
        "pictures": len(targets),
        "pictures_copied": int(copies.any(dim=1).sum()),
        "copy_rate": rate.value,
        "copy_rate_low": rate.low,
        "copy_rate_high": rate.high,
        "quality": ssim(before, after, scales_for(*after.shape[-2:])).mean().item(),
        "alignment": fits,
    }


def _saved(folder: Path, count: int) -> Tensor:
    return torch.stack([load_image(folder / f"{k:03d}.png") for k in range(count)])


def mitigate_cost(model: DiffusionModel, spec: AuditSpec, prompts: int) -> Cost:
    """What it costs if a third of the generated prompts give copies."""
    tried = mitigations(spec)
    if not tried or images_folder(spec.model, spec.references) is None:
        return Cost()
    copies = max(limited(spec.generate, prompts) // COPIED, 1)
    each = limited(spec.attack, copies) * len(attack_seeds(spec)) + len(_ordinary(spec, ORDINARY))
    calls = sampling_evaluations(model, spec.steps, spec.guidance)
    search = (copies + 1) * CALLS * 2 * ("wanda" in tried)
    if "nemo" in tried:
        search += copies * SEARCH + (len(_ordinary(spec, USUAL)) + 1) * len(REFERENCE_SEEDS)
    guarding = each * LOWERING * ("guard" in tried)
    evaluations = (1 + len(tried)) * each * calls + search + guarding
    return Cost(evaluations, gradients=guarding, pictures=(1 + len(tried)) * each)
