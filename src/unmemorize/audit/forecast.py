"""What an audit will cost, before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from unmemorize.audit.bench import chosen_of, labelled_inputs
from unmemorize.audit.plan import STAGES
from unmemorize.core.errors import NotApplicable, UserError
from unmemorize.core.methods import Detector, score_each
from unmemorize.core.recording import Recorder
from unmemorize.core.specs import AuditSpec, BenchSpec
from unmemorize.stages.contend import Contest
from unmemorize.stages.detect import detectors_of, fitting_prompts, unfitted_of
from unmemorize.stages.forecast import Expected, Memory, Speed, Spent, fitting_to, picture, warm
from unmemorize.stages.inputs import Inputs
from unmemorize.stages.trial import PROMPTS, reason
from unmemorize.verdict.findings import UNMITIGATED

TABLES = 200  # bytes a score takes in the run's tables and pieces


@dataclass(frozen=True)
class Forecast:
    """Denoiser evaluations and seconds by stage, bytes on disk, and memory. Comparison and loading are not timed."""

    evaluations: dict[str, int]
    seconds: dict[str, float]
    pictures: int
    bytes: int
    memory: Memory


def forecast(spec: AuditSpec) -> Forecast:
    """Count the work of an audit, and time a little of it on this machine. Writes nothing.

    Raises:
        UserError: The model or the prompts cannot be used.
    """
    inputs = Inputs.of(spec)
    spec, model, prompts = inputs.spec, inputs.model, len(inputs.prompts)
    costs = {stage.name: stage.cost(inputs) for stage in STAGES}
    speed = Speed.of(model, spec.steps)
    pictures = sum(cost.pictures for cost in costs.values())
    height, width = model.image_size
    return Forecast(
        {name: cost.evaluations for name, cost in costs.items() if cost.evaluations},
        {name: speed.seconds(cost) for name, cost in costs.items() if cost.evaluations},
        pictures,
        pictures * height * width * 3 * 2 + prompts * spec.seeds * TABLES,  # each picture and its nearest one
        Memory.of(model),
    )


def forecast_bench(spec: BenchSpec) -> Expected:
    """Score one prompt of each model with every detector, or make two pictures under every mitigation; count the rest.

    Of several models the memory is that of the largest.

    Raises:
        UserError: As `run_bench`, or an attack is asked for.
    """
    if spec.attack:
        raise UserError("--dry-run: an attack is not counted: leave --attack out")
    chosen, prompts = chosen_of(spec)
    items, spent, memories = 0, dict[str, Spent](), []
    for model, labelled in prompts.items():
        own = replace(chosen, model=model, more=())
        inputs = labelled_inputs(own, labelled) if spec.kind == "detector" else Inputs.of(own)
        of_model = _ranking(inputs) if spec.kind == "detector" else _contending(inputs)
        for name, part in of_model.items():
            spent[name] = spent.get(name, Spent(0, 0)) + part
        items += len(labelled) or len(inputs.bundle.targets(inputs.model.image_size))
        memories.append(Memory.of(inputs.model))
    evaluations = {name: round(part.evaluations) for name, part in spent.items()}
    seconds = {name: part.seconds for name, part in spent.items()}
    return Expected(items, evaluations, seconds, max(memories, key=lambda memory: memory.float32))


def _ranking(inputs: Inputs) -> dict[str, Spent]:
    """What trying detectors takes, fitting them and scoring with all that apply."""
    model, prompts = inputs.model, [prompt.text for prompt in inputs.prompts]
    recorder = Recorder(model, inputs.subject.sampler, tuple(inputs.spec.numbers))
    applicable = [detector for detector in detectors_of(inputs.spec) if reason(inputs, detector) is None]

    def per_prompt(methods: Sequence[Detector]) -> Spent:
        return warm(model, prompts[0], lambda prompt: score_each(methods, recorder, model.encode([prompt])))

    trial = Spent(0, 0)
    for detector in applicable:
        trial += per_prompt([detector]) * (min(PROMPTS, len(prompts)) + 1)  # the first one to see whether it applies
    spent = {"trial": trial}
    if unfitted := unfitted_of(applicable):
        spent["plain"] = per_prompt(unfitted) * len(fitting_prompts(inputs))
    return spent | {"detect": per_prompt(applicable) * len(prompts)}


def _contending(inputs: Inputs) -> dict[str, Spent]:
    """What each mitigation that applies takes: fitting it, copied pictures and ordinary ones, from one of either."""
    contest = Contest.of(inputs)
    copied, ordinary = len(contest.targets) * inputs.spec.pictures, len(contest.ordinary)
    first, usual = contest.targets.prompts[0], contest.calibrating[0]
    picture(inputs.subject, first)  # the first call of all takes longer
    # Ordinary pictures are made twice without a mitigation: once for all others to be compared with.
    spent = {UNMITIGATED: picture(inputs.subject, first) * (copied + 2 * ordinary)}
    for text in inputs.spec.method:
        with suppress(NotApplicable):
            mitigation, fitting = fitting_to(inputs, text, contest.targets.prompts, contest.calibrating)
            with mitigation.applied(inputs.subject) as subject:
                spent[text] = fitting + picture(subject, first) * copied + picture(subject, usual) * ordinary
    return spent
