"""What a command will take: work on one item is done and timed, and items are counted. Nothing is written."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from unmemorize.attack.dori import Dori
from unmemorize.attack.extraction import SEEDS, Trial, extraction
from unmemorize.core.batches import in_batches
from unmemorize.core.errors import UserError
from unmemorize.core.methods import (
    Detector,
    Localizer,
    Mitigation,
    PictureTest,
    Subject,
    Training,
    parse,
    score_each,
    settings,
    spelled,
)
from unmemorize.core.model import DiffusionModel
from unmemorize.core.recording import Recorder
from unmemorize.core.results import Match, Pairs, Surrogates
from unmemorize.core.sample import generate, generators, sampling_evaluations
from unmemorize.core.specs import (
    AttackSpec,
    CheckSpec,
    DetectSpec,
    ExplainSpec,
    GenerateSpec,
    LocalitySpec,
    LocateSpec,
    MitigateSpec,
    TriggerSpec,
)
from unmemorize.explain.leave_one_out import LeaveOneOut
from unmemorize.explain.words import measure
from unmemorize.models.pipeline import PipelineModel
from unmemorize.stages.attack import checked_attack, chosen_subjects, curve_of
from unmemorize.stages.check import Measured, given_of
from unmemorize.stages.detect import detectors_of, fitting_prompts, unfitted_of
from unmemorize.stages.explain import explainer_of
from unmemorize.stages.inputs import Inputs
from unmemorize.stages.locality import localizers_of, memorized_of
from unmemorize.stages.locate import prompts_of, require_ordinary
from unmemorize.stages.mitigations import fit, mitigation_of
from unmemorize.stages.stage import Cost
from unmemorize.stages.triggers import texts_of, variants_of
from unmemorize.stages.unlearn import CHECK_SEEDS, CHECKED, STARTS, measures, trained_in
from unmemorize.stages.unlearner import pairs_of, unlearner_of
from unmemorize.study.effects import Subjects
from unmemorize.unlearn.finetune import Finetuning, Objective
from unmemorize.unlearn.loop import Team

ROWS = 32  # evaluations at once, as the stages do
BACKWARD = 2  # a gradient costs about two evaluations more
HALF, SINGLE = 2, 4  # bytes of a number
NO_COPY = Match("", 1.0, 1.0, "none")
TRAINED = 4 * SINGLE  # bytes of a parameter that is trained: its weight, its gradient and AdamW's two moments

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Memory:
    """GB (10⁹ bytes), computed from the shapes of the weights: without activations, whose share grows with `--batch`.

    Attributes:
        float32: All weights in float32.
        half: All weights in half precision.
        training: What training all weights of the denoiser holds at least: these with gradients and moments in float32.
    """

    float32: float
    half: float
    training: float

    @classmethod
    def of(cls, model: PipelineModel) -> Memory:
        """What a model takes."""
        sizes = model.sizes
        every, trained = sum(sizes.values()), sizes["denoiser"]
        training = (every - trained) * SINGLE + trained * TRAINED
        return cls(every * SINGLE / 1e9, every * HALF / 1e9, training / 1e9)


@dataclass(frozen=True)
class Expected:
    """What to expect, without loading.

    Attributes:
        items: How many prompts, texts or pictures there are.
        evaluations: Of the denoiser, by stage.
        seconds: By stage, on this machine.
        memory: What the model takes.
    """

    items: int
    evaluations: dict[str, int]
    seconds: dict[str, float]
    memory: Memory


@dataclass(frozen=True)
class Speed:
    """Seconds of one evaluation and of decoding one picture, on a warm machine."""

    evaluation: float
    decoding: float

    @classmethod
    def of(cls, model: DiffusionModel, steps: int) -> Speed:
        """Measured, with random latents and the empty prompt."""
        cond = model.encode([""] * ROWS)
        x = model.noise(generators(range(ROWS)))
        t = model.schedule(steps).timesteps[0]

        def evaluate() -> None:
            for _ in in_batches(model, ROWS, lambda part: model.predict(x[part], t, cond[part]), size=ROWS):
                pass

        def decode() -> None:
            for _ in in_batches(model, 4, lambda part: model.decode(x[part]), size=4):
                pass

        with torch.no_grad():
            return cls(_seconds_of(model, evaluate) / ROWS, _seconds_of(model, decode) / 4)

    def seconds(self, cost: Cost) -> float:
        """What some work takes."""
        evaluations = cost.evaluations + BACKWARD * cost.gradients
        return evaluations * self.evaluation + cost.pictures * self.decoding


@dataclass(frozen=True)
class Spent:
    """Evaluations and seconds that some work took."""

    evaluations: float
    seconds: float

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.evaluations + other.evaluations, self.seconds + other.seconds)

    def __sub__(self, other: Spent) -> Spent:
        return Spent(max(self.evaluations - other.evaluations, 0), max(self.seconds - other.seconds, 0))

    def __mul__(self, times: float) -> Spent:
        return Spent(self.evaluations * times, self.seconds * times)


def expected(model: PipelineModel, items: int, spent: Mapping[str, Spent]) -> Expected:
    """A forecast from what each stage takes."""
    evaluations = {stage: round(part.evaluations) for stage, part in spent.items()}
    return Expected(items, evaluations, {stage: part.seconds for stage, part in spent.items()}, Memory.of(model))


def forecast_detect(spec: DetectSpec) -> Expected:
    """Count the prompts, and score the first of them.

    Raises:
        UserError: The model, the prompts or the method cannot be used.
    """
    detectors = detectors_of(spec)
    inputs = Inputs.of(spec)
    model, prompts = inputs.model, [prompt.text for prompt in inputs.prompts]
    recorder = Recorder(model, inputs.subject.sampler, tuple(spec.numbers))

    def per_prompt(methods: Sequence[Detector]) -> Spent:
        return warm(model, prompts[0], lambda prompt: score_each(methods, recorder, model.encode([prompt])))

    spent = {"detect": per_prompt(detectors) * len(prompts)}
    if unfitted := unfitted_of(detectors):
        spent = {"plain": per_prompt(unfitted) * len(fitting_prompts(inputs))} | spent
    return expected(model, len(prompts), spent)


def forecast_check(spec: CheckSpec) -> Expected:
    """Score the first picture with every test, and count pictures and controls.

    Raises:
        UserError: As `check`.
        NotApplicable: The model lacks what a test reads.
    """
    tests, model, pictures, controls = given_of(spec)
    one = Measured.of(model, pictures[[0]], captioned=all(pictures.captions) and all(controls.captions))
    count, spent = len(pictures) + len(controls), {}
    for test in tests:

        def score(pairs: Pairs, test: PictureTest = test) -> object:
            return test.score(Subject(model), pairs, seeds=spec.numbers)

        spent[spelled(test)] = warm(model, one.pairs, score) * count
    return expected(model, len(pictures), spent)


def forecast_explain(spec: ExplainSpec) -> Expected:
    """Explain the prompt by one seed, and count the seeds.

    Raises:
        UserError: As `explain`.
    """
    explainers = [explainer_of(spec), *([LeaveOneOut()] if spec.check else [])]
    inputs = Inputs.of(spec)
    model, subject, one = inputs.model, inputs.subject, spec.numbers[:1]
    spent = {}
    for explainer in explainers:
        _, by_one = _timed(model, partial(explainer.explain, subject, spec.prompt, seeds=one))
        spent[explainer.name] = by_one * spec.seeds
    return expected(model, 1, spent)


def forecast_generate(spec: GenerateSpec) -> Expected:
    """Make one picture, under the mitigation where one is named, and count the pictures.

    Raises:
        UserError: As `generate`.
        NotApplicable: The model lacks what the mitigation acts on.
    """
    inputs = Inputs.of(spec)
    spent = {}
    applied: AbstractContextManager[Subject] = nullcontext(inputs.subject)
    if spec.mitigation:
        mitigation, fitting = fitting_to(inputs, spec.mitigation, [spec.prompt], inputs.bundle.ordinary())
        applied = mitigation.applied(inputs.subject)
        if fitting.evaluations:
            spent["fit"] = fitting
    with applied as subject:
        spent["generate"] = picture(subject, spec.prompt) * spec.pictures
    return expected(inputs.model, spec.pictures, spent)


def picture(subject: Subject, prompt: str) -> Spent:
    """What making one picture of a prompt takes."""
    cond = subject.model.encode([prompt])
    _, spent = _timed(subject.model, lambda: generate(subject.model, cond, seeds=[0], sampler=subject.sampler))
    return spent


def fitting_to(inputs: Inputs, text: str, prompts: Sequence[str], ordinary: Sequence[str]) -> tuple[Mitigation, Spent]:
    """A mitigation, fitted to one prompt and two ordinary ones, and what fitting it to all of them takes.

    Limits from two ordinary prompts are rough: neither of these is above them.

    Raises:
        UserError: It cannot be used, or what it needs is not there.
        NotApplicable: The model lacks what it acts on.
    """
    model = inputs.model

    def fit_to(some: Sequence[str], others: Sequence[str]) -> tuple[Mitigation, Spent]:
        mitigation, cond, contrast = mitigation_of(text, model), model.encode(some), model.encode(others)
        seeds = range(len(others))
        return _timed(model, lambda: fit(mitigation, inputs, prompts=cond, ordinary=contrast, seeds=seeds))

    mitigation, two = fit_to(prompts[:1], ordinary[:2])
    if not two.evaluations:  # it is the same for however many prompts
        return mitigation, two
    _, one = fit_to(prompts[:1], ordinary[:1])
    _, two = fit_to(prompts[:1], ordinary[:2])  # warm
    spent = one + (two - one) * (len(ordinary) - 1)
    if len(prompts) > 1:
        _, more = fit_to(prompts[:2], ordinary[:1])
        spent += (more - one) * (len(prompts) - 1)
    return mitigation, spent


def forecast_triggers(spec: TriggerSpec) -> Expected:
    """Count the texts that prompts are taken apart into, and measure the first of them.

    Raises:
        UserError: The model or the prompts cannot be used.
    """
    inputs = Inputs.of(spec)
    subject, seeds = inputs.subject, range(spec.pictures)
    texts = texts_of(variants_of(spec, inputs.bundle))

    def measured(text: str) -> object:
        return measure(subject, [text], lambda pictures: [NO_COPY] * len(pictures), seeds=seeds)

    return expected(inputs.model, len(texts), {"probe": warm(inputs.model, texts[0], measured) * len(texts)})


def forecast_attack(spec: AttackSpec) -> Expected:
    """Attack one picture with one update, and count what more pictures and updates add.

    Raises:
        UserError: As `run_attack`, or the attack searches in one piece, which no update is a part of.
    """
    attack = checked_attack(spec)
    if "ordinary" in attack.needs:
        raise UserError(f"--dry-run: {attack.name} has no update to time: {attack.cost}")
    inputs = Inputs.of(spec)
    model, subject = inputs.model, inputs.subject
    check, subjects = chosen_subjects(inputs)
    one = subjects.attacked[[0]]
    short = dataclasses.replace(attack, updates=1)  # type: ignore[type-var]
    trial = Trial((1,), spec.init, 1, SEEDS[:1])
    (numbers, _), spent = _timed(model, lambda: extraction(subject, one, short, check.against, trial))
    pictures = sum(len(group) for group in subjects.groups.values())
    judged = len({0, *curve_of(attack)}) - (spec.init == "prompt")  # the prompt's own pictures are made once
    generated = (1 + spec.restarts * judged) * spec.pictures * sampling_evaluations(model, subject.sampler)
    evaluations = pictures * round(generated + spec.restarts * attack.updates * numbers.evaluations)
    return expected(model, pictures, {"attack": spent * (evaluations / spent.evaluations)})


def forecast_locate(spec: LocateSpec) -> Expected:
    """Locate for one prompt and for two, and count the prompts.

    Raises:
        UserError: As `locate`.
    """
    localizer: Localizer = parse("localizer", spec.method)
    require_ordinary(spec, localizer)
    inputs = Inputs.of(spec)
    prompts, ordinary = prompts_of(inputs, localizer)
    spent = located(inputs, localizer, prompts[:2], ordinary, len(prompts))
    return expected(inputs.model, len(prompts), {"locate": spent})


def located(inputs: Inputs, localizer: Localizer, prompts: Sequence[str], ordinary: Sequence[str], count: int) -> Spent:
    """What locating for `count` prompts takes, of which one or two are given.

    What is measured once, for all prompts, is what the empty one takes more at first than when it is asked for again.
    """
    model = inputs.model
    contrast = model.encode(ordinary) if ordinary else None

    def find(texts: Sequence[str]) -> Spent:
        cond = model.encode(texts)
        _, spent = _timed(model, lambda: localizer.find(Subject(model), cond, ordinary=contrast))
        return spent

    once = find([""]) - find([""])
    one = find(prompts[:1])
    each = find(prompts[:2]) - one if count > 1 else one
    return once + one + each * (count - 1)


def forecast_locality(spec: LocalitySpec) -> Expected:
    """Attack from one start with one update, locate with each method, and count what more starts and embeddings take.

    Raises:
        UserError: As `locality`.
    """
    localizers = localizers_of(spec)
    inputs = Inputs.of(spec)
    model, subject, spec = inputs.model, inputs.subject, inputs.spec
    prompts, ordinary = [prompt.text for prompt in memorized_of(inputs)], inputs.bundle.ordinary()
    with torch.no_grad():
        latent = model.invert(inputs.check.references[[0]].images)
    start = model.encode([""])
    _, update = _timed(model, lambda: Dori(updates=1).attack(Subject(model), latent, start, seeds=[0]))
    drawn = (spec.inits + len(prompts)) * spec.pictures
    sampled = Cost(drawn * sampling_evaluations(model, subject.sampler), 0, drawn)
    embeddings = 2 * spec.inits + len(prompts) + min(spec.inits, len(ordinary))
    spent = {
        "attack": update * (spec.inits * spec.updates),
        "generate": Spent(sampled.evaluations, Speed.of(model, spec.steps).seconds(sampled)),
    }
    for name, localizer in localizers.items():
        spent[name] = located(inputs, localizer, prompts[:2], ordinary, embeddings)
    return expected(model, spec.inits, spent)


def forecast_mitigate(spec: MitigateSpec) -> Expected:
    """Compute the gradients of two updates, and count what more updates, checks and measurements take.

    Raises:
        UserError: As `mitigate`, or the unlearner trains in a way of its own, which no update can be timed of.
    """
    unlearner = unlearner_of(spec)
    if not isinstance(unlearner, Finetuning):
        raise UserError(f"--dry-run: {unlearner.name} has no update to time: {unlearner.cost}")
    inputs = Inputs.of(trained_in(spec, spec.device))
    model, spec = inputs.model, inputs.spec
    subjects, _, split = measures(spec, model)
    forget, keep = pairs_of(model, subjects.memorized), pairs_of(model, split.train)
    updates, surrogates_used = _updates(inputs.subject, unlearner, forget, keep)
    costs = _costs_beside_updates(spec, unlearner, subjects, sampling_evaluations(model, inputs.subject.sampler))
    if not surrogates_used:
        del costs["surrogates"]
    speed = Speed.of(model, spec.steps)
    spent = {"updates": updates}
    for name, cost in costs.items():
        if cost.evaluations:
            spent[name] = Spent(cost.evaluations, speed.seconds(cost))
    return expected(model, len(subjects.memorized), spent)


def _updates(subject: Subject, unlearner: Finetuning, forget: Pairs, keep: Pairs) -> tuple[Spent, bool]:
    """What all updates take, from the first two, and whether the objective asked for surrogates.

    Of a method that works in rounds the first update of each takes longer than the others.
    """
    surrogates_used = False

    def surrogates() -> Surrogates:
        nonlocal surrogates_used
        surrogates_used = True
        return Surrogates(forget.latents, torch.arange(len(forget)))

    objective = unlearner.objective(subject, forget, keep, Training(Path(), surrogates=surrogates))
    first = _update(subject.model, objective, 0)
    later = _update(subject.model, objective, 1)
    rounds = -(-unlearner.updates // int(settings(unlearner).get("every", unlearner.updates)))
    return later * unlearner.updates + (first - later) * rounds, surrogates_used


def _costs_beside_updates(spec: MitigateSpec, unlearner: Finetuning, subjects: Subjects, calls: int) -> dict[str, Cost]:
    """What measuring before and after, checks in training and surrogates cost; `calls` make one picture."""
    count, ordinary = len(subjects.memorized), len(subjects.ordinary)
    attack = Dori(updates=spec.attack_updates)

    def attacks(pictures: int, seeds: int) -> Cost:
        gradients = pictures * attack.updates * attack.batch
        return Cost(gradients + pictures * seeds * calls, gradients, pictures * seeds)

    checks = unlearner.updates // unlearner.check_every if unlearner.check_every else 0
    measured = 2 * (count + ordinary) * spec.pictures
    return {
        "measure": Cost(measured * calls, 0, measured) + attacks(count, spec.pictures) * STARTS,
        "checks": attacks(min(CHECKED, count), min(CHECK_SEEDS, spec.pictures)) * checks,
        "surrogates": Cost(count * spec.surrogates * calls, 0, count * spec.surrogates),
    }


def _update(model: DiffusionModel, objective: Objective, number: int) -> Spent:
    """One update's gradients, which change no weight."""
    for parameter in model.denoiser.parameters():
        parameter.grad = torch.zeros_like(parameter)
    _, spent = _timed(model, lambda: objective.backward(model, number, Team(model.device)))
    for parameter in model.denoiser.parameters():
        parameter.grad = None
    return spent


def warm(model: DiffusionModel, item: Item, work: Callable[[Item], object]) -> Spent:
    """What work on one item takes; the first call of all takes longer than those that follow."""
    work(item)
    _, spent = _timed(model, lambda: work(item))
    return spent


def _timed(model: DiffusionModel, work: Callable[[], Result]) -> tuple[Result, Spent]:
    since = _now(model)
    with model.counted() as cost:
        result = work()
    return result, Spent(cost.forward, _now(model) - since)


def _now(model: DiffusionModel) -> float:
    """The clock, once the device has done what it was given."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()


def _seconds_of(model: DiffusionModel, call: Callable[[], object]) -> float:
    call()
    started = _now(model)
    for _ in range(3):
        call()
    return (_now(model) - started) / 3
