"""Generate pictures of a prompt, with or without a guard."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unmemorize.core.run import require_new
from unmemorize.core.sample import generators
from unmemorize.core.specs import GenerateSpec
from unmemorize.data.pictures import save_image
from unmemorize.jobs.guard import Guard
from unmemorize.jobs.inputs import load_as_asked, ordinary_of, with_sampling
from unmemorize.mitigate.prompt import Limits


def generate(spec: GenerateSpec, out: Path) -> list[dict[str, Any]]:
    """Write one PNG a seed to `out`; returns what was made and, under a guard, what it saw and did.

    Raises:
        UserError: The folder is not empty, only one limit is given, or the model or prompt cannot be used.
    """
    require_new(out)
    model = load_as_asked(spec)
    spec, pipe = with_sampling(spec, model), model.pipe
    pipe.set_progress_bar_config(disable=False, leave=False)
    call = Guard(pipe, ordinary=ordinary_of(spec.model, spec.ordinary), limits=_limits(spec)) if spec.guard else pipe
    seeds = range(spec.pictures)
    pictures = call(
        [spec.prompt] * len(seeds),
        generator=generators(seeds),
        num_inference_steps=spec.steps,
        guidance_scale=spec.guidance,
        output_type="pt",
    ).images
    rows: list[dict[str, Any]] = [{"seed": seed, "image": str(out / f"{seed}.png")} for seed in seeds]
    for row, picture in zip(rows, pictures, strict=True):
        save_image(picture.float(), Path(row["image"]))
    return rows if isinstance(call, type(pipe)) else _outcomes(rows, call)


def _limits(spec: GenerateSpec) -> Limits | None:
    if spec.threshold is None or spec.target is None:
        return None
    return Limits(spec.threshold, spec.target)


def _outcomes(rows: Sequence[dict[str, Any]], guard: Guard) -> list[dict[str, Any]]:
    seen = guard.outcome
    assert seen is not None
    limits = {"threshold": seen.limits.threshold, "target": seen.limits.target}
    return [
        row | {"acted": acted, "magnitude": before, "magnitude_after": after} | limits
        for row, acted, before, after in zip(rows, seen.acted, seen.before, seen.after, strict=True)
    ]
