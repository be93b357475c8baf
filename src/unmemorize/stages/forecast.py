"""What scoring, probing and attacking will take: the work on one item is done and timed, and items are counted."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from unmemorize.attack.extraction import SEEDS, Trial, extraction
from unmemorize.core.errors import UserError
from unmemorize.core.methods import Detector, parse
from unmemorize.core.model import DiffusionModel
from unmemorize.core.sample import sampling_evaluations
from unmemorize.core.specs import AttackSpec, DetectSpec, TriggerSpec
from unmemorize.explain.words import measure
from unmemorize.stages.attack import checked_attack, chosen_subjects, curve_of
from unmemorize.stages.inputs import bundle_of, load_as_asked, subject_of, with_sampling
from unmemorize.stages.triggers import texts_of

Item = TypeVar("Item")


@dataclass(frozen=True)
class Expected:
    """Denoiser evaluations and seconds by stage, without loading, and how many prompts, texts or pictures there are."""

    items: int
    evaluations: dict[str, int]
    seconds: dict[str, float]


def forecast_detect(spec: DetectSpec) -> Expected:
    """Count the prompts, and score the first of them.

    Raises:
        UserError: The model, the prompts or the method cannot be used.
    """
    detector: Detector = parse("detector", spec.method)
    prompts = [prompt.text for prompt in bundle_of(spec).prompts]
    model = load_as_asked(spec)
    subject = subject_of(with_sampling(spec, model), model)
    score = detector.ready(subject, seeds=spec.numbers)
    return _timed(model, "detect", prompts, lambda prompt: score(model.encode([prompt])))


def forecast_triggers(spec: TriggerSpec) -> Expected:
    """Count the texts that prompts are taken apart into, and measure the first of them.

    Raises:
        UserError: The model or the prompts cannot be used.
    """
    texts = texts_of(spec)
    model = load_as_asked(spec)
    subject, seeds = subject_of(with_sampling(spec, model), model), range(spec.pictures)
    return _timed(model, "probe", texts, lambda text: measure(subject, [text], lambda x: [False] * len(x), seeds=seeds))


def forecast_attack(spec: AttackSpec) -> Expected:
    """Attack one picture with one update, and count what more pictures and updates add.

    Raises:
        UserError: As `run_attack`, or the attack searches in one piece, which no update is a part of.
    """
    attack = checked_attack(spec)
    if "ordinary" in attack.needs:
        raise UserError(f"--dry-run: {attack.name} has no update to time: {attack.cost}")
    model = load_as_asked(spec)
    spec = with_sampling(spec, model)
    check, subjects = chosen_subjects(spec, model, bundle_of(spec))
    subject, one = subject_of(spec, model), subjects.attacked[[0]]
    short = dataclasses.replace(attack, updates=1)  # type: ignore[type-var]
    since = time.perf_counter()
    with model.counted() as cost:
        found, _ = extraction(subject, one, short, check.against, Trial((1,), spec.init, 1, SEEDS[:1]))
    each = (time.perf_counter() - since) / cost.forward
    pictures = sum(len(group) for group in subjects.groups.values())
    judged = len({0, *curve_of(attack)}) - (spec.init == "prompt")  # the prompt's own pictures are made once
    made = (1 + spec.restarts * judged) * spec.pictures * sampling_evaluations(model, subject.sampler)
    evaluations = pictures * round(made + spec.restarts * attack.updates * found.evaluations)
    return Expected(pictures, {"attack": evaluations}, {"attack": evaluations * each})


def _timed(model: DiffusionModel, stage: str, items: Sequence[Item], work: Callable[[Item], object]) -> Expected:
    work(items[0])  # the first call of all takes longer than those that follow
    since = time.perf_counter()
    with model.counted() as cost:
        work(items[0])
    seconds = time.perf_counter() - since
    return Expected(len(items), {stage: cost.forward * len(items)}, {stage: seconds * len(items)})
