"""Generate pictures of a prompt, with or without a mitigation."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow.parquet as pq
import torch
from torch import Tensor

from unmemorize.core.batches import in_batches
from unmemorize.core.crew import ALONE, Crew
from unmemorize.core.methods import Subject
from unmemorize.core.model import Condition
from unmemorize.core.run import Progress, Run, new_folder, quiet, require_new
from unmemorize.core.sample import ROWS, generators, sampling_start
from unmemorize.core.sample import generate as sample_pictures
from unmemorize.core.shards import Row
from unmemorize.core.specs import GenerateSpec
from unmemorize.data.pictures import save_image
from unmemorize.stages.inputs import Inputs
from unmemorize.stages.mitigations import fit, mitigation_of
from unmemorize.stages.stage import Work, run_task

STARTS = ("condition", "noise")  # what a mitigation may act on before the first step


def generate(spec: GenerateSpec, out: Path, progress: Progress = quiet, crew: Crew = ALONE) -> list[Row]:
    """Write one PNG a seed to `out`; returns what was made and, under a mitigation, what it did to the prompt.

    Raises:
        UserError: The folder is not empty, or the model, the prompt or the mitigation cannot be used.
    """
    require_new(out)
    inputs = Inputs.of(spec)
    temporary = TemporaryDirectory(ignore_cleanup_errors=True)  # a worker that starts late may still look for shards
    with new_folder(out) as whole, temporary as folder, Run.open(Path(folder), inputs.record({})) as run:
        opening = partial(generating, out=Path(os.path.abspath(whole)))
        rows: list[Row] = pq.read_table(run_task(opening, inputs, run.folder, progress, crew)).to_pylist()
        made = {f"{row['seed']}.png" for row in rows}
        for path in whole.iterdir():
            if path.name not in made:
                path.unlink()  # what a worker was writing when it was killed
    return [{"seed": row["seed"], "image": str(out / f"{row['seed']}.png")} | row for row in rows]


def generating(inputs: Inputs, run: Path, progress: Progress, *, out: Path) -> Work[int]:
    """One PNG a seed in `out`; what was done to the prompt is in `pictures.parquet` of the run, which is temporary.

    Raises:
        UserError: The prompt or the mitigation cannot be used.
    """
    spec, model, subject = inputs.spec, inputs.model, inputs.subject
    fitted = None
    if spec.mitigation:
        mitigation = mitigation_of(spec.mitigation, model)
        ordinary = model.encode(inputs.bundle.ordinary())
        prompt = model.encode([spec.prompt])
        each = range(len(ordinary))  # each ordinary prompt at a seed of its own
        fitted = fit(mitigation, inputs, prompts=prompt, ordinary=ordinary, seeds=each, progress=progress)

    def do(seeds: Sequence[int]) -> list[Row]:
        cond = model.encode([spec.prompt] * len(seeds))
        rows: list[Row] = [{"seed": seed} for seed in seeds]
        with fitted.applied(subject) if fitted else nullcontext(subject) as mitigated:
            pictures = sample_pictures(model, cond, seeds=seeds, sampler=mitigated.sampler)
            for seed, picture in zip(seeds, pictures, strict=True):
                save_image(picture.float(), out / f"{seed}.png")
            if fitted is None or fitted.acts not in STARTS:
                return rows
            done: list[Row] = []
            parts = in_batches(
                model, len(seeds), lambda part: _done(subject, mitigated, cond[part], seeds[part]), size=ROWS, rows=2
            )
            for _, of_part in parts:
                done += of_part
        return [row | more for row, more in zip(rows, done, strict=True)]

    return Work("generate", "pictures.parquet", range(spec.pictures), do, size=ROWS)


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
