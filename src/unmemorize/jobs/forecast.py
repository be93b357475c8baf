"""What scoring and probing will cost: the work on one prompt is done and timed, and the prompts are counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from unmemorize.core.methods import Detector, parse
from unmemorize.core.model import DiffusionModel
from unmemorize.core.specs import DetectSpec, TriggerSpec
from unmemorize.explain.words import measure
from unmemorize.jobs.inputs import bundle_of, load_as_asked, subject_of, with_sampling
from unmemorize.jobs.triggers import texts_of

Item = TypeVar("Item")


@dataclass(frozen=True)
class Expected:
    """Denoiser evaluations and seconds by stage, without loading; `items` is how many prompts or texts there are."""

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


def _timed(model: DiffusionModel, stage: str, items: Sequence[Item], work: Callable[[Item], object]) -> Expected:
    work(items[0])  # the first call of all takes longer than those that follow
    since = time.perf_counter()
    with model.counted() as cost:
        work(items[0])
    seconds = time.perf_counter() - since
    return Expected(len(items), {stage: cost.forward * len(items)}, {stage: seconds * len(items)})
