"""The stage that mitigates: every mitigation tried with the prompts that gave copies, and with ordinary ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from unmemorize.attack.extraction import judging_seeds
from unmemorize.core.choose import evenly
from unmemorize.core.errors import NotApplicable, UserError
from unmemorize.core.methods import Mitigation, Subject, is_plain, methods, parse, spelled
from unmemorize.core.run import Progress, read_json, write_json
from unmemorize.core.sample import sampling_evaluations
from unmemorize.core.shards import Row
from unmemorize.core.specs import AuditSpec, limited
from unmemorize.data.pictures import load_image, save_image
from unmemorize.localize.reference import SEEDS as REFERENCE_SEEDS
from unmemorize.localize.wanda import CALLS
from unmemorize.metrics.ranking import share_interval
from unmemorize.metrics.similarity import References
from unmemorize.metrics.ssim import scales_for, ssim
from unmemorize.mitigate.edit import Edit
from unmemorize.stages.inputs import UNSEEN, Inputs, NotRun
from unmemorize.stages.mitigations import fit, mitigation_of, named_apart, promises_a_rate
from unmemorize.stages.stage import COPIED, Cost, Stage, Work, in_shards
from unmemorize.stages.verify import VERIFY, copied_rows, reference_name
from unmemorize.study.controls import spread
from unmemorize.study.effects import Judge, copies_of, judge_of, pictures
from unmemorize.verdict.findings import UNMITIGATED

ON_TESTBED, ELSEWHERE = 0.4, 0.1  # of each row that Wanda may take: on the testbed less hides little (docs/pruning.md)
ORDINARY = 12  # pictures of ordinary prompts, by which quality is compared
SEARCH = 2000  # evaluations of NeMo a prompt, about
LOWERING = 10  # updates of an embedding by the guard, at most


@dataclass(frozen=True)
class Copies:
    """The prompts that gave copies, and the copied pictures to look at, each with such a prompt as its caption."""

    prompts: tuple[str, ...]
    pictures: References


def mitigations(spec: AuditSpec, *, testbed: bool = False) -> dict[str, str]:
    """The mitigations as they were asked for, by short name.

    Raises:
        UserError: Two have one name, or that of the model as it came.
    """
    tried = named_apart(spec.mitigation)
    if UNMITIGATED in tried:
        raise UserError(f"--mitigation {tried[UNMITIGATED]}: this name stands for no mitigation: rename the folder")
    if tried.get("wanda") == "wanda":
        tried["wanda"] = f"wanda:sparsity={ON_TESTBED if testbed else ELSEWHERE}"
    return tried


@dataclass(frozen=True)
class Fitting:
    """Makes mitigations, each once a run: `edits/` keeps edits, and in `NAME.fit.json` measured settings and the cost.

    Attributes:
        inputs: The model as it came, and its prompts.
        run: The run directory.
        prompts: Those that gave copies.
        progress: Told of what is measured.
    """

    inputs: Inputs
    run: Path
    prompts: tuple[str, ...]
    progress: Progress

    def fitted(self, name: str, text: str) -> tuple[Mitigation, int]:
        """The mitigation of that name, ready to be applied, and the evaluations that it took to make it."""
        edit = self.run / "edits" / f"{name}.safetensors"
        record = edit.with_suffix(".fit.json")
        if kept := _kept(record, edit):
            return kept
        model = self.inputs.model
        mitigation = mitigation_of(text, model)
        with model.counted() as cost:
            fitted = fit(
                mitigation,
                self.inputs,
                prompts=model.encode(self.prompts),
                ordinary=model.encode(_calibrating(self.inputs)),
                seeds=self.inputs.spec.numbers,
                progress=self.progress,
            )
        if isinstance(fitted, Edit):
            fitted.save(edit)
            write_json(record, {"mitigation": None, "evaluations": cost.forward})
        elif fitted is not mitigation and is_plain(fitted):
            write_json(record, {"mitigation": spelled(fitted), "evaluations": cost.forward})
        return fitted, cost.forward


def _kept(record: Path, edit: Path) -> tuple[Mitigation, int] | None:
    """What was fitted before and the evaluations that it took, where both files are whole: else it is fitted anew."""
    try:
        fit = read_json(record)
        known: Mitigation = Edit.load(edit) if fit["mitigation"] is None else parse("mitigation", fit["mitigation"])
        return known, int(fit["evaluations"])
    except (UserError, LookupError, TypeError, ValueError, AttributeError):
        return None


def _calibrating(inputs: Inputs) -> list[str]:
    """The ordinary prompts: first those in the audited list, then the others."""
    known, prompts = inputs.ordinary, inputs.prompts
    return [*(prompts[place].text for place in known.listed), *(prompt.text for prompt in known.unlisted)]


def mitigations_of(inputs: Inputs) -> dict[str, str]:
    """The mitigations to try in this audit, by short name: none of those that `left_out` names."""
    tried = mitigations(inputs.spec, testbed=inputs.bundle.own is not None)
    omitted = left_out(inputs)
    return {name: text for name, text in tried.items() if name not in omitted}


def left_out(inputs: Inputs) -> list[str]:
    """The mitigations that promise a rate of false alarms, where nothing says what is ordinary for the model."""
    if inputs.bundle.has("ordinary"):
        return []
    names = []
    for name, text in mitigations(inputs.spec).items():
        if text.partition(":")[0] in methods("mitigation") and promises_a_rate(parse("mitigation", text)):
            names.append(name)
    return names


def mitigating(inputs: Inputs, run: Path, progress: Progress) -> Work[str]:
    """A row for the model as it came and for each mitigation in `scores/mitigated.parquet`; edits go to `edits/`.

    Raises:
        NotApplicable: Nothing was copied, or the model lacks what a mitigation acts on.
        NotRun: No mitigation is asked for, or there are no training pictures.
    """
    tried = mitigations_of(inputs)
    if not tried:
        raise NotRun("no mitigation was asked for: name one with --mitigation")
    copies = copied(inputs, run)
    model, subject = inputs.model, inputs.subject
    judge = judge_of(model, inputs.check, judging_seeds(inputs.spec.pictures), testbed=inputs.bundle.own is not None)
    fitting = Fitting(inputs, run, copies.prompts, progress)
    prompts = _ordinary(inputs, ORDINARY)

    def measured(changed: Subject, name: str, spent: int) -> Row:
        with model.counted() as measuring:
            row = _measured(changed, copies.pictures, prompts, judge, run / "mitigated", name)
        return {"name": name} | row | {"evaluations": spent, "measuring": measuring.forward}

    def do(shard: Sequence[str]) -> list[Row]:
        (name,) = shard
        if name == UNMITIGATED:
            return [measured(subject, name, 0)]
        mitigation, spent = fitting.fitted(name, tried[name])
        with mitigation.applied(subject) as changed:
            return [measured(changed, name, spent)]

    names = [UNMITIGATED, *tried]
    # In order, since all need the pictures of the first.
    return Work("mitigate", "scores/mitigated.parquet", names, do, size=1, in_order=True)


def copied(inputs: Inputs, run: Path) -> Copies:
    """What the audit found copied: of the pictures the verbatim ones, where there are any, each once, evenly chosen.

    Raises:
        NotApplicable: Nothing was copied.
        NotRun: There are no training pictures to compare with.
    """
    references = inputs.references
    if not VERIFY.done(run):
        raise NotRun(UNSEEN)
    rows = copied_rows(run)
    if not rows:
        raise NotApplicable("nothing was copied")
    texts = {p.id: p.text for p in inputs.prompts}
    prompts = tuple(dict.fromkeys(texts[row["id"]] for row in rows))
    first: dict[str, str] = {}
    verbatim = [row for row in rows if row["verdict"] == "verbatim"]
    for row in verbatim or rows:
        if texts[row["id"]] not in first.values():
            first.setdefault(row["nearest"], texts[row["id"]])
    place = {reference_name(name): i for i, name in enumerate(references.names)}
    chosen = replace(references[[place[name] for name in first]], captions=tuple(first.values()))
    return Copies(prompts, spread(chosen, limited(inputs.spec.attack, len(chosen))))


def _ordinary(inputs: Inputs, count: int) -> list[str]:
    texts = inputs.bundle.ordinary()
    return [texts[i] for i in evenly(len(texts), count)]


def _measured(
    subject: Subject, targets: References, prompts: Sequence[str], judge: Judge, folder: Path, name: str
) -> Row:
    """Copies for the prompts, and how ordinary prompts' pictures compare with the unmitigated model's."""
    model = subject.model
    copies = copies_of(subject, model.encode(targets.prompts), targets, judge)
    rate = share_interval(copies)
    images = pictures(subject, model.encode(prompts), range(len(prompts)))
    for k, image in enumerate(images):
        save_image(image, folder / name / f"{k:03d}.png")
    # As they were written, in 8 bits: a run that goes on has no others of the unmitigated model.
    before = _saved(folder / UNMITIGATED, len(images))
    after = _saved(folder / name, len(images))
    alignment = None if judge.alignment is None else judge.alignment(after, prompts).mean().item()
    return {
        "pictures": len(targets),
        "pictures_copied": int(copies.any(dim=1).sum()),
        "copy_rate": rate.value,
        "copy_rate_low": rate.low,
        "copy_rate_high": rate.high,
        "quality": ssim(before, after, scales_for(*after.shape[-2:])).mean().item(),
        "alignment": alignment,
    }


def _saved(folder: Path, count: int) -> Tensor:
    return torch.stack([load_image(folder / f"{k:03d}.png") for k in range(count)])


def _cost(inputs: Inputs) -> Cost:
    """What it costs if a third of the generated prompts give copies."""
    spec, tried = inputs.spec, mitigations_of(inputs)
    if not tried or not inputs.bundle.has("references"):
        return Cost()
    copies = max(limited(spec.generate, len(inputs.prompts)) // COPIED, 1)
    each = limited(spec.attack, copies) * spec.pictures + len(_ordinary(inputs, ORDINARY))
    calls = sampling_evaluations(inputs.model, inputs.subject.sampler)
    search = 0
    if "guard" in tried:
        search += len(_calibrating(inputs)) + spec.seeds
    if "wanda" in tried:
        search += (copies + 1) * CALLS * 2
    if "nemo" in tried:
        search += copies * SEARCH + len(_calibrating(inputs)) * len(REFERENCE_SEEDS)
    guarding = each * LOWERING * ("guard" in tried)
    evaluations = (1 + len(tried)) * each * calls + search + guarding
    return Cost(evaluations, gradients=guarding, pictures=(1 + len(tried)) * each)


MITIGATE = Stage("mitigate", "mitigated", in_shards(mitigating), _cost)
