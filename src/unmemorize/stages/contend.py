"""Mitigations side by side: copies that each leaves of the same pictures, and what it does to ordinary ones."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean

import numpy as np
from torch import Tensor

from unmemorize.attack.extraction import Trial, extraction, judging_seeds
from unmemorize.core.choose import evenly
from unmemorize.core.errors import NotApplicable, UserError
from unmemorize.core.groups import ATTACKED, CONTROL
from unmemorize.core.methods import Acts, Attack, Mitigation, Subject, parse
from unmemorize.core.records import Interval
from unmemorize.core.run import Progress
from unmemorize.core.shards import Row
from unmemorize.metrics.quality import compare, mean_of
from unmemorize.metrics.ranking import share_interval
from unmemorize.metrics.similarity import References
from unmemorize.metrics.ssim import scales_for, ssim
from unmemorize.stages.attack import prepared
from unmemorize.stages.inputs import Inputs
from unmemorize.stages.mitigations import fit, mitigation_of
from unmemorize.stages.stage import Stage, Work, in_shards
from unmemorize.study.controls import choose_subjects
from unmemorize.study.effects import Judge, copies_of, judge_of, pictures
from unmemorize.verdict.findings import UNMITIGATED

MEASURED = ("copied", "changed", "likeness", "alignment", "evaluations", "gradients", "seconds", ATTACKED, CONTROL)
KNOWN = ("method", "reason", "acts", "attack_knows_it", "evaluations", "gradients", "seconds")
HARMED = 24  # ordinary prompts that are generated, at most, and no more than half of them; the others calibrate


@dataclass(frozen=True)
class Contest:
    """What every mitigation is tried on.

    Attributes:
        inputs: The model as it came.
        targets: The pictures that it copies, with their captions.
        judge: What a copy is, and at which seeds.
        calibrating: Ordinary prompts that mitigations are calibrated on.
        ordinary: Others, whose pictures are compared with those that the model makes without a mitigation.
        attack: What searches for the pictures under every mitigation, where that is asked for.
        controls: Pictures that are not memorized, which it searches for, too.
    """

    inputs: Inputs
    targets: References
    judge: Judge
    calibrating: tuple[str, ...]
    ordinary: tuple[str, ...]
    attack: Attack | None
    controls: References

    @classmethod
    def of(cls, inputs: Inputs) -> Contest:
        """That of a command's settings.

        Raises:
            UserError: The pictures or the controls of an attack cannot be used, or there are too few ordinary prompts
                to set some aside.
        """
        spec, model, bundle = inputs.spec, inputs.model, inputs.bundle
        texts = bundle.ordinary()
        apart = set(evenly(len(texts), min(HARMED, len(texts) // 2)))
        if not apart:
            raise UserError(f"{len(texts)} ordinary prompts: name two or more with --ordinary")
        judge = judge_of(model, inputs.check, judging_seeds(spec.pictures), testbed=bundle.own is not None)
        calibrating = tuple(text for i, text in enumerate(texts) if i not in apart)
        ordinary = tuple(texts[i] for i in sorted(apart))
        targets = bundle.targets(model.image_size)
        if not spec.attack:
            return cls(inputs, targets, judge, calibrating, ordinary, None, targets[[]])
        subjects = choose_subjects(model, bundle, inputs.check)
        attack = prepared(parse("attack", spec.attack), inputs, subjects)
        return cls(inputs, targets, judge, calibrating, ordinary, attack, subjects.control)

    @cached_property
    def before(self) -> Tensor:
        """The pictures of the ordinary prompts without a mitigation, each at a seed of its own."""
        return self.drawn(self.inputs.subject)

    def drawn(self, subject: Subject) -> Tensor:
        """The pictures of the ordinary prompts, each at a seed of its own, (n, 3, h, w)."""
        return pictures(subject, subject.model.encode(self.ordinary), range(len(self.ordinary)))

    def fitted(self, text: str, progress: Progress) -> Mitigation:
        """The mitigation of that name, with what it measures beforehand.

        Raises:
            NotApplicable: The model lacks what it acts on.
        """
        model = self.inputs.model
        return fit(
            mitigation_of(text, model),
            self.inputs,
            prompts=model.encode(self.targets.prompts),
            ordinary=model.encode(self.calibrating),
            seeds=range(len(self.calibrating)),
            progress=progress,
        )

    def without(self) -> Row:
        """What the model as it came gives.

        Raises:
            UserError: It copies none of the pictures, so that there is nothing to mitigate.
        """
        row = self.measured(nullcontext(self.inputs.subject))
        if not np.any(row["copied"]):
            count = len(self.targets)
            raise UserError(f"none of {count} pictures is copied from its caption: name others with --targets")
        return row

    def measured(self, applied: AbstractContextManager[Subject]) -> Row:
        """What is left under a mitigation, picture by picture."""
        model = self.inputs.model
        with applied as subject:
            since = time.perf_counter()
            with model.counted() as cost:
                copied = copies_of(subject, model.encode(self.targets.prompts), self.targets, self.judge)
            seconds = time.perf_counter() - since
            after = self.drawn(subject)
            brought_back = self.brought_back(subject)
        changed = (after != self.before).flatten(1).any(dim=1)
        likeness = ssim(self.before, after, scales_for(*after.shape[-2:]))
        count = copied.numel()
        return {
            "copied": copied.tolist(),
            "changed": changed.tolist(),
            "likeness": likeness.tolist(),
            "alignment": self._alignment(after),
            "evaluations": cost.forward / count,
            "gradients": cost.backward / count,
            "seconds": seconds / count,
        } | brought_back

    def brought_back(self, subject: Subject) -> Row:
        """Which pictures, and which controls, are copied after the attack: (pictures, seeds), None without one.

        It searches under what is applied to the subject, and seeds of generation are those of the captions' pictures.
        """
        row: Row = dict.fromkeys((ATTACKED, CONTROL))
        if self.attack is None:
            return row
        trial = Trial((self.attack.updates,), "prompt", seeds=self.judge.seeds)
        for group, wanted in ((ATTACKED, self.targets), (CONTROL, self.controls)):
            try:
                found, _ = extraction(subject, wanted, self.attack, self.inputs.check.against, trial)
            except NotApplicable:  # what changes words has nothing to change in an embedding
                return dict.fromkeys((ATTACKED, CONTROL))
            row[group] = found.copied[:, 0, -1].astype(int).tolist()
        return row

    def knows(self, acts: Acts) -> bool | None:
        """Whether the attack meets what a mitigation acts on, None without an attack."""
        return None if self.attack is None else acts in self.attack.meets

    def _alignment(self, images: Tensor) -> list[float] | None:
        """How ordinary pictures fit their prompts; None where no model of ours knows."""
        if self.judge.alignment is None:
            return None
        return [float(value) for value in self.judge.alignment(images, self.ordinary)]


def contending(inputs: Inputs, run: Path, progress: Progress) -> Work[str]:
    """One row a mitigation, and one for none, in `scores/mitigations.parquet`; or why it does not apply.

    Raises:
        UserError: The pictures or the ordinary prompts cannot be used.
    """
    contest = Contest.of(inputs)

    def do(shard: Sequence[str]) -> list[Row]:
        (text,) = shard
        row: Row = {"method": text, "reason": None, "acts": None, "attack_knows_it": contest.knows("weights")}
        try:
            if text == UNMITIGATED:
                return [row | contest.without()]
            mitigation = contest.fitted(text, progress)
            row |= {"acts": mitigation.acts, "attack_knows_it": contest.knows(mitigation.acts)}
            return [row | contest.measured(mitigation.applied(inputs.subject))]
        except NotApplicable as error:
            return [row | {"reason": str(error)} | dict.fromkeys(MEASURED)]

    names = [UNMITIGATED, *inputs.spec.method]
    return Work("contend", "scores/mitigations.parquet", names, do, size=1)


def contested(rows: Sequence[Row]) -> list[Row]:
    """The numbers of each row of the table, with 95% intervals: paired with those of the model without a mitigation."""
    before = next(row for row in rows if row["method"] == UNMITIGATED)
    numbers = []
    for row in rows:
        known = {name: row[name] for name in KNOWN}
        numbers.append(known if row["reason"] is not None else known | _numbers(before, row))
    return numbers


def _numbers(before: Row, row: Row) -> Row:
    pictures = [str(i) for i in range(len(row["copied"]))]
    rates = [np.array(part["copied"]).mean(axis=1) for part in (before, row)]
    fall = compare(mean_of(rates[0]), mean_of(rates[1]), pictures, 1).change
    numbers: Row = {"pictures": len(pictures), "ordinary": len(row["changed"])}
    numbers |= _limits("copies", share_interval(row["copied"])) | _limits("fall", fall)
    numbers |= _limits("changed", share_interval(np.array(row["changed"])[:, None]))
    numbers |= {"likeness": fmean(row["likeness"]), "alignment": None}
    for group in (ATTACKED, CONTROL):
        if row[group] is not None:
            numbers |= _limits(group, share_interval(row[group]))
    if row["alignment"] is not None:
        prompts = [str(i) for i in range(len(row["alignment"]))]
        earlier, later = [mean_of(np.array(part["alignment"])) for part in (before, row)]
        numbers |= _limits("alignment", compare(earlier, later, prompts, 1).change)
    return numbers


def _limits(name: str, interval: Interval) -> Row:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


CONTEND = Stage("contend", "mitigations", in_shards(contending))
