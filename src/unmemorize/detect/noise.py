"""The magnitude of the text-conditional noise prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from unmemorize.core.errors import NotApplicable
from unmemorize.core.model import DiffusionModel, Prediction
from unmemorize.core.registry import detector
from unmemorize.core.results import Scores
from unmemorize.core.sample import Step, first_conditional
from unmemorize.metrics.magnitude import magnitude


@detector("noise-gap", paper="Wen et al. 2024", steps=1)
def noise_gap(steps: Sequence[Step]) -> Tensor:
    """The magnitude, averaged over the steps: (n,).

    Raises:
        NotApplicable: Guidance was off, so there is no unconditional prediction.
    """
    values = []
    for step in steps:
        if step.uncond is None:
            raise NotApplicable("noise-gap needs the unconditional prediction: sample with guidance above 1")
        values.append(magnitude(step.cond, step.uncond))
    return torch.stack(values).mean(0)


def noise_gap_at_start(
    model: DiffusionModel,
    prompts: Sequence[str],
    empty: Prediction,
    *,
    seeds: Sequence[int],
    steps: int = 50,
    batch: int = 64,
) -> Scores:
    """The magnitude at the first of `steps` sampling steps: scores (prompts, seeds), one evaluation each.

    `empty` is `first_unconditional` of the same seeds and steps, shared by all prompts.
    """
    before = model.evaluations
    cond = first_conditional(model, model.encode(prompts), empty, steps=steps, batch=batch)
    uncond = replace(empty, output=empty.output.repeat(len(prompts), 1, 1, 1), x=cond.x)
    values = magnitude(cond, uncond).reshape(len(prompts), len(seeds)).cpu()
    return Scores("noise-gap", tuple(prompts), tuple(seeds), values, model.evaluations - before)
