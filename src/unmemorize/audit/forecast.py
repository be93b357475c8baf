"""What an audit will cost, before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from unmemorize.audit.bench import chosen_of, labelled_inputs
from unmemorize.audit.plan import STAGES
from unmemorize.core.methods import Detector, score_each
from unmemorize.core.recording import Recorder
from unmemorize.core.sample import sampling_evaluations
from unmemorize.core.specs import AuditSpec, BenchSpec
from unmemorize.stages.contend import Contest
from unmemorize.stages.detect import detectors_of, fitting_prompts, unfitted_of
from unmemorize.stages.forecast import Expected, Memory, Speed, Spent, warm
from unmemorize.stages.inputs import Inputs
from unmemorize.stages.stage import Cost
from unmemorize.stages.trial import PROMPTS, reason

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
    """Score one prompt of each model with every detector, or time a little of sampling, and count the rest.

    What a mitigation measures beforehand is not counted, nor what it adds to sampling. Of several models the memory is
    that of the largest.

    Raises:
        UserError: As `run_bench`.
    """
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
    """What the pictures take, without a mitigation and under each."""
    contest = Contest.of(inputs)
    ordinary, tried = len(contest.ordinary), len(inputs.spec.method)
    pictures = (tried + 1) * (len(contest.targets) * inputs.spec.pictures + ordinary) + ordinary
    cost = Cost(pictures * sampling_evaluations(inputs.model, inputs.subject.sampler), 0, pictures)
    return {"pictures": Spent(cost.evaluations, Speed.of(inputs.model, inputs.spec.steps).seconds(cost))}
