"""The magnitude of the text-conditional prediction, in the trained output (the noise, in Stable Diffusion)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor

from unmemorize.core.errors import NotApplicable
from unmemorize.core.model import DiffusionModel, Prediction
from unmemorize.core.registry import detector
from unmemorize.core.results import NoiseTrace
from unmemorize.core.sample import Step, first_conditional, trajectory


@detector("noise-gap", paper="Wen et al. 2024", steps=1)
def noise_gap(steps: Sequence[Step]) -> Tensor:
    """The magnitude, averaged over the steps: (n,).

    Raises:
        NotApplicable: Guidance was off, so there is no unconditional prediction.
    """
    return torch.stack([step.cond.gap(_uncond(step)) for step in steps]).mean(0)


def noise_gap_at_start(
    model: DiffusionModel,
    prompts: Sequence[str],
    empty: Prediction,
    *,
    seeds: Sequence[int],
    steps: int = 50,
    batch: int = 64,
) -> NoiseTrace:
    """The magnitude at the first of `steps` sampling steps, one evaluation a prompt and seed.

    `empty` is `first_unconditional` of the same seeds and steps, shared by all prompts.
    """
    with model.counted() as cost:
        cond = first_conditional(model, model.encode(prompts), empty, steps=steps, batch=batch)
    uncond = empty.repeated(len(prompts))
    shape = (len(prompts), len(seeds), 1)
    text, norm = cond.gap(uncond).reshape(shape).cpu(), _norm(uncond).reshape(shape).cpu()
    return NoiseTrace(tuple(prompts), tuple(seeds), text, norm, cost.forward)


def noise_gap_along(
    model: DiffusionModel,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int],
    steps: int = 50,
    window: tuple[int, int],
    guidance: float = 7.5,
    batch: int = 32,
) -> NoiseTrace:
    """The magnitude at sampling steps `window[0]` to `window[1] - 1`, two evaluations a step up to the last of them.

    Paper: Wen et al. 2024 average over all 50 steps.
    Differs: every prompt sees the same seeds, so that scores of two prompts differ by the prompts alone.

    Raises:
        NotApplicable: Guidance is off, so there is no unconditional prediction along the way.
    """
    cond = model.encode(prompts)
    text, norm = [], []
    with model.counted() as cost:
        for part in torch.arange(len(prompts) * len(seeds)).split(batch):
            chosen = [seeds[i] for i in (part % len(seeds)).tolist()]
            path = trajectory(model, cond[part // len(seeds)], seeds=chosen, steps=steps, guidance=guidance)
            gaps, norms = [], []
            for step in islice(path, *window):
                gaps.append(step.cond.gap(_uncond(step)))
                norms.append(_norm(_uncond(step)))
            text.append(torch.stack(gaps, dim=1))
            norm.append(torch.stack(norms, dim=1))
    shape = (len(prompts), len(seeds), -1)
    values, control = torch.cat(text).reshape(shape).cpu(), torch.cat(norm).reshape(shape).cpu()
    return NoiseTrace(tuple(prompts), tuple(seeds), values, control, cost.forward)


def _uncond(step: Step) -> Prediction:
    if step.uncond is None:
        raise NotApplicable("noise-gap needs the unconditional prediction: sample with guidance above 1")
    return step.uncond


def _norm(prediction: Prediction) -> Tensor:
    norms: Tensor = prediction.output.float().flatten(1).norm(dim=1)
    return norms
