"""Generate from the prompts that say most."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from unmemorize.core.batches import decoded, in_batches
from unmemorize.core.choose import evenly
from unmemorize.core.methods import Subject
from unmemorize.core.model import Condition
from unmemorize.core.run import Progress
from unmemorize.core.sample import ROWS, rows_of, sampling_evaluations, trajectory
from unmemorize.core.shards import Row
from unmemorize.core.specs import limited
from unmemorize.data.pictures import pixels_of, read_image, save_image
from unmemorize.data.source import Prompt
from unmemorize.stages.inputs import Inputs, scores_of
from unmemorize.stages.stage import Cost, Stage, Work, in_shards


def choose(prompts: Sequence[Prompt], scores: np.ndarray, count: int) -> list[Prompt]:
    """The prompts to generate: those of known copies, half of what is left by score, an even spread of the rest.

    The first group carries the dose-response curve and the last shows what a low score means, so neither may depend
    on the score.
    """
    known = _spread([p for p in prompts if p.kind == "verbatim"], count)
    order = [prompts[i] for i in np.argsort(-scores.mean(axis=1), kind="stable")]
    by_score = [p for p in order if p.kind != "verbatim"]
    top = by_score[: (count - len(known)) // 2]
    return [*known, *top, *_spread(by_score[len(top) :], count - len(known) - len(top))]


def _spread(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    return [prompts[i] for i in evenly(len(prompts), count)]


def generating(inputs: Inputs, run: Path, progress: Progress) -> Work[tuple[Prompt, int]]:
    """A PNG per chosen prompt and seed in `images/`, and `scores/images.parquet` with the magnitude along the way."""
    spec, prompts, subject = inputs.spec, inputs.prompts, inputs.subject
    chosen = choose(prompts, scores_of(run, len(prompts)), limited(spec.generate, len(prompts)))
    seeds = range(spec.seed, spec.seed + spec.pictures)
    pairs = list(itertools.product(chosen, seeds))

    def do(shard: Sequence[tuple[Prompt, int]]) -> list[Row]:
        cond = subject.model.encode([prompt.text for prompt, _ in shard])
        images, curves = _sampled(subject, cond, [seed for _, seed in shard])
        rows = []
        for (prompt, seed), image, curve in zip(shard, images, curves, strict=True):
            name = f"images/{prompt.id}-{seed}.png"
            save_image(image, run / name)
            rows.append({"id": prompt.id, "seed": seed, "image": name, "curve": curve})
        return rows

    return Work("generate", "scores/images.parquet", pairs, do, size=ROWS)


def _sampled(subject: Subject, cond: Condition, seeds: Sequence[int]) -> tuple[Tensor, list[list[float] | None]]:
    """Pictures, and the magnitude at every step of each: guidance computes what it needs anyway."""
    model, sampler = subject.model, subject.sampler

    def walk(part: slice) -> tuple[Tensor, list[list[float] | None]]:
        gaps = []
        for step in trajectory(model, cond[part], seeds=seeds[part], sampler=sampler):
            if step.uncond is not None:
                gaps.append(step.cond.gap(step.uncond))
        return step.x_next, torch.stack(gaps, dim=1).tolist() if gaps else [None] * len(step.x_next)

    latents: list[Tensor] = []
    curves: list[list[float] | None] = []
    for _, (last, of_part) in in_batches(model, len(cond), walk, size=ROWS, rows=rows_of(model, sampler)):
        latents.append(last)
        curves += of_part
    return decoded(model, torch.cat(latents)), curves


def generated(run: Path) -> list[Row]:
    """The rows of `scores/images.parquet`: id, seed and file."""
    rows: list[Row] = pq.read_table(run / "scores" / "images.parquet", columns=["id", "seed", "image"]).to_pylist()
    return rows


def bytes_of(run: Path, rows: Sequence[Row]) -> Tensor:
    """The generated pictures' bytes, (n, 3, h, w)."""
    return torch.stack([pixels_of(read_image(run / row["image"])) for row in rows])


def _cost(inputs: Inputs) -> Cost:
    pictures = limited(inputs.spec.generate, len(inputs.prompts)) * inputs.spec.pictures
    calls = sampling_evaluations(inputs.model, inputs.subject.sampler)
    return Cost(pictures * calls, pictures=pictures)


GENERATE = Stage("generate", "images", in_shards(generating), _cost)
