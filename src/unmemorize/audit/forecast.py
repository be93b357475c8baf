"""What an audit will cost, before it starts."""

from __future__ import annotations

from dataclasses import dataclass

from unmemorize.audit.plan import STAGES
from unmemorize.core.specs import AuditSpec
from unmemorize.stages.forecast import Memory, Speed
from unmemorize.stages.inputs import Inputs

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
