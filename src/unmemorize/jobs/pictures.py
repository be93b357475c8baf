"""Generate from the prompts that say most, and compare with the training pictures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from unmemorize.core.choose import evenly
from unmemorize.core.errors import NotApplicable
from unmemorize.core.model import Condition, DiffusionModel
from unmemorize.core.results import Match
from unmemorize.core.run import Progress, atomic, digest
from unmemorize.core.sample import trajectory
from unmemorize.core.shards import merge_shards, run_shards
from unmemorize.data.pictures import load_image, save_image
from unmemorize.data.source import Prompt
from unmemorize.jobs.copies import Distances, Matcher
from unmemorize.metrics.permutation import nearness_test
from unmemorize.metrics.similarity import References, kept_pixels

Row = dict[str, Any]


def choose(prompts: Sequence[Prompt], scores: np.ndarray, count: int) -> list[Prompt]:
    """The prompts to generate: the verbatim ladder, half of what is left by score, an even spread of the rest.

    The first group carries the dose-response curve and the last shows what a low score means, so neither may depend
    on the score.
    """
    ladder = _spread([p for p in prompts if p.kind == "verbatim"], count)
    order = [prompts[i] for i in np.argsort(-scores.mean(axis=1), kind="stable")]
    others = [p for p in order if p.kind != "verbatim"]
    top = others[: (count - len(ladder)) // 2]
    return [*ladder, *top, *_spread(others[len(top) :], count - len(ladder) - len(top))]


def _spread(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    return [prompts[i] for i in evenly(len(prompts), count)]


def generate_pictures(
    model: DiffusionModel,
    chosen: Sequence[Prompt],
    run: Path,
    progress: Progress,
    *,
    seeds: Sequence[int],
    steps: int,
    guidance: float,
) -> None:
    """Write a PNG per prompt and seed to `images/`, and `scores/images.parquet` with the magnitude along the way."""
    pairs = [(p, seed) for p in chosen for seed in seeds]

    def work(piece: Sequence[tuple[Prompt, int]]) -> list[Row]:
        cond = model.encode([p.text for p, _ in piece])
        images, curves = _sampled(model, cond, [s for _, s in piece], steps, guidance)
        rows = []
        for (prompt, seed), image, curve in zip(piece, images, curves, strict=True):
            name = f"images/{prompt.id}-{seed}.png"
            save_image(image, run / name)
            rows.append({"id": prompt.id, "seed": seed, "image": name, "curve": curve})
        return rows

    for done in run_shards(pairs, work, folder=run / "shards" / "generate", size=16):
        progress("generate", done, len(pairs))
    merge_shards(run / "shards" / "generate", run / "scores" / "images.parquet")


def _sampled(
    model: DiffusionModel, cond: Condition, seeds: Sequence[int], steps: int, guidance: float
) -> tuple[Tensor, list[list[float] | None]]:
    """Pictures, and the magnitude at every step of each: guidance computes what it needs anyway."""
    curves = []
    for step in trajectory(model, cond, seeds=seeds, steps=steps, guidance=guidance):
        if step.uncond is not None:
            curves.append(step.cond.gap(step.uncond))
    with torch.no_grad():
        images = model.decode(step.x_next)
    return images, torch.stack(curves, dim=1).tolist() if curves else [None] * len(seeds)


def verify_pictures(run: Path, references: References, folder: Path, match: Matcher) -> None:
    """Compare the generated pictures with the training pictures: `scores/verify.parquet` and `references/`."""
    rows = _generated(run)
    matches = match(_images(run, rows), references)
    captions = dict(zip(references.names, references.captions, strict=True))
    found = [row | _match_row(match, captions[match.nearest]) for row, match in zip(rows, matches, strict=True)]
    for name in {m.nearest for m in matches}:
        save_image(load_image(folder / name), run / reference_name(name))
    with atomic(run / "scores" / "verify.parquet") as temporary:
        pq.write_table(pa.Table.from_pylist(found), temporary)


def compare_held_out(
    run: Path, references: References, held_out: Tensor | None, distances: Distances, ordinary: set[str]
) -> None:
    """Whether generated pictures are nearer to training pictures than to others: `scores/nearness.parquet`.

    Pictures given are compared one a group of duplicates, as many of either set: a larger set, or one with more
    variants of a picture, has the nearer picture by chance. A group with pictures of both sets is left out.

    Args:
        run: Where the pictures are.
        references: The training pictures.
        held_out: Pictures (n, 3, h, w) that were not trained on; the training pictures' mirror images by default.
        distances: Of pictures to pictures, with groups of duplicates.
        ordinary: Ids of the prompts whose pictures are the control.

    Raises:
        NotApplicable: All pictures given are duplicates of training pictures.
    """
    rows = _generated(run)
    images, training, keep = _images(run, rows), references.images, kept_pixels(references)
    if held_out is None:
        other = training.flip(-1)
        groups = distances.groups(torch.cat([training, other]), torch.cat([keep, keep.flip(-1)]))
    else:
        chosen, others = _comparable(training, held_out, keep, distances)
        training, other = training[chosen], held_out[others]
        groups = np.arange(len(training) + len(other))
    near, far = distances.between(images, training).numpy(), distances.between(images, other).numpy()
    control = np.array([row["id"] in ordinary for row in rows])
    sets = {"all": np.ones(len(rows), bool), "ordinary prompts": control}
    found = [
        {"group": name, "held_out": "mirror images" if held_out is None else "pictures given"}
        | vars(nearness_test(near[members], far[members], paired=held_out is None, groups=groups))
        for name, members in sets.items()
        if members.any()
    ]
    with atomic(run / "scores" / "nearness.parquet") as temporary:
        pq.write_table(pa.Table.from_pylist(found), temporary)


def _comparable(
    training: Tensor, held_out: Tensor, keep: Tensor, distances: Distances
) -> tuple[np.ndarray, np.ndarray]:
    """Which pictures of either set to compare: one a group of duplicates, none of a group of both, as many of each."""
    size = min(len(training), len(held_out))
    chosen, others = _sample(len(training), size), _sample(len(held_out), size)
    counted = torch.cat([keep[chosen], torch.ones(size, *keep.shape[1:])])
    groups = distances.groups(torch.cat([training[chosen], held_out[others]]), counted)
    both = np.intersect1d(groups[:size], groups[size:])
    chosen, others = chosen[_firsts(groups[:size], both)], others[_firsts(groups[size:], both)]
    size = min(len(chosen), len(others))
    if not size:
        raise NotApplicable("the pictures given as held out are duplicates of training pictures")
    return chosen[_sample(len(chosen), size)], others[_sample(len(others), size)]


def _firsts(groups: np.ndarray, without: np.ndarray) -> np.ndarray:
    """Where each group begins, but for some groups."""
    names, first = np.unique(groups, return_index=True)
    return first[~np.isin(names, without)]


def _sample(count: int, size: int) -> np.ndarray:
    return np.random.default_rng(0).permutation(count)[:size]


def _generated(run: Path) -> list[Row]:
    rows: list[Row] = pq.read_table(run / "scores" / "images.parquet", columns=["id", "seed", "image"]).to_pylist()
    return rows


def _images(run: Path, rows: Sequence[Row]) -> Tensor:
    return torch.stack([load_image(run / row["image"]) for row in rows])


def _match_row(match: Match, caption: str | None) -> Row:
    values = {"distance": match.distance, "ratio": match.value, "verdict": match.verdict}
    return {"nearest": reference_name(match.nearest), "caption": caption} | values


def reference_name(name: str) -> str:
    """Where a training picture is kept in the run directory."""
    # A training picture's own name may hold anything; in the run directory it is known by a hash.
    return f"references/{digest([os.fsencode(name)])[:16]}.png"
