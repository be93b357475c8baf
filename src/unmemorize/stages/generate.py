"""Generate pictures of a prompt, with or without a mitigation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from unmemorize.core.methods import Subject
from unmemorize.core.model import Condition
from unmemorize.core.run import Progress, quiet, require_new
from unmemorize.core.sample import generate as sample_pictures
from unmemorize.core.sample import generators, sampling_start
from unmemorize.core.shards import Row
from unmemorize.core.specs import GenerateSpec
from unmemorize.data.pictures import save_image
from unmemorize.stages.inputs import Inputs
from unmemorize.stages.mitigations import fit, mitigation_of

STARTS = ("condition", "noise")  # what a mitigation may act on before the first step


def generate(spec: GenerateSpec, out: Path, progress: Progress = quiet) -> list[Row]:
    """Write one PNG a seed to `out`; returns what was made and, under a mitigation, what it did to the prompt.

    Raises:
        UserError: The folder is not empty, or the model, the prompt or the mitigation cannot be used.
    """
    require_new(out)
    inputs = Inputs.of(spec)
    model, subject = inputs.model, inputs.subject
    cond, seeds = model.encode([spec.prompt] * spec.pictures), range(spec.pictures)
    rows: list[Row] = [{"seed": seed, "image": str(out / f"{seed}.png")} for seed in seeds]
    if not spec.mitigation:
        _write(subject, cond, seeds, rows)
        return rows
    mitigation = mitigation_of(spec.mitigation, model)
    bundle = inputs.bundle
    ordinary = model.encode(bundle.ordinary())
    prompt = cond[:1]
    # Each ordinary prompt at a seed of its own.
    fitted = fit(mitigation, inputs, prompts=prompt, ordinary=ordinary, seeds=range(len(ordinary)), progress=progress)
    with fitted.applied(subject) as mitigated:
        _write(mitigated, cond, seeds, rows)
        if fitted.acts not in STARTS:
            return rows
        done = _done(subject, mitigated, cond, seeds)
    return [row | more for row, more in zip(rows, done, strict=True)]


def _write(subject: Subject, cond: Condition, seeds: Sequence[int], rows: Sequence[Row]) -> None:
    pictures = sample_pictures(subject.model, cond, seeds=seeds, sampler=subject.sampler)
    for row, picture in zip(rows, pictures, strict=True):
        save_image(picture.float(), Path(row["image"]))


def _done(subject: Subject, mitigated: Subject, cond: Condition, seeds: Sequence[int]) -> list[Row]:
    """Whether sampling starts from something else under the mitigation, and the magnitude there before and after."""
    noise = subject.model.noise(generators(seeds))
    changed, moved = mitigated.sampler.fresh().start(subject.model, cond, noise, seeds)
    before, after = _magnitudes(subject, cond, noise), _magnitudes(subject, changed, moved)
    rows = []
    for i, (first, last) in enumerate(zip(before, after, strict=True)):
        same = torch.equal(cond.embeds[i], changed.embeds[i]) and torch.equal(noise[i], moved[i])
        rows.append({"acted": not same, "magnitude": first, "magnitude_after": last})
    return rows


def _magnitudes(subject: Subject, cond: Condition, noise: Tensor) -> list[float]:
    """Every row's magnitude at the first step from this noise."""
    model = subject.model
    x, t = sampling_start(model, noise, subject.steps)
    with torch.no_grad():
        empty = model.predict(x, t, model.unconditional(len(x)))
        values: list[float] = model.predict(x, t, cond).gap(empty).tolist()
    return values
