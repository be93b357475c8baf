"""What an audit will cost, before it starts."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from unmemorize.audit.plan import STAGES
from unmemorize.core.model import DiffusionModel
from unmemorize.core.sample import generators
from unmemorize.core.specs import AuditSpec
from unmemorize.stages.inputs import Inputs, bundle_of, load_as_asked, with_sampling
from unmemorize.stages.stage import Cost

ROWS = 32  # evaluations at once, as the stages do
BACKWARD = 2  # a gradient costs about two evaluations more
TABLES = 200  # bytes a score takes in the run's tables and pieces


@dataclass(frozen=True)
class Forecast:
    """Denoiser evaluations and seconds by stage, and bytes on disk. Comparison and loading are not timed."""

    evaluations: dict[str, int]
    seconds: dict[str, float]
    pictures: int
    bytes: int


def forecast(spec: AuditSpec) -> Forecast:
    """Count the work of an audit, and time a little of it on this machine. Writes nothing.

    Raises:
        UserError: The model or the prompts cannot be used.
    """
    bundle = bundle_of(spec)
    prompts = len(bundle.prompts)
    model = load_as_asked(spec)
    spec = with_sampling(spec, model)
    inputs = Inputs(spec, model, bundle)
    costs = {stage.name: stage.cost(inputs) for stage in STAGES}
    each, decode = _timed(model, spec)
    pictures = sum(cost.pictures for cost in costs.values())
    height, width = model.image_size
    return Forecast(
        {name: cost.evaluations for name, cost in costs.items() if cost.evaluations},
        {name: _seconds(cost, each, decode) for name, cost in costs.items() if cost.evaluations},
        pictures,
        pictures * height * width * 3 * 2 + prompts * spec.seeds * TABLES,  # each picture and its nearest one
    )


def _seconds(cost: Cost, each: float, decode: float) -> float:
    return (cost.evaluations + BACKWARD * cost.gradients) * each + cost.pictures * decode


def _timed(model: DiffusionModel, spec: AuditSpec) -> tuple[float, float]:
    """Seconds of one evaluation and of decoding one picture, on a warm machine."""
    cond = model.encode([""] * ROWS)
    x = model.noise(generators(range(ROWS)))
    t = model.schedule(spec.steps).timesteps[0]
    with torch.no_grad():
        evaluation = _seconds_of(lambda: model.predict(x, t, cond))
        return evaluation / ROWS, _seconds_of(lambda: model.decode(x[:4])) / 4


def _seconds_of(call: Callable[[], object]) -> float:
    call()
    started = time.perf_counter()
    for _ in range(3):
        call()
    return (time.perf_counter() - started) / 3
