"""Generate from the prompts that say most, and compare with the training pictures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from unmemorize.core.choose import evenly
from unmemorize.core.errors import NotApplicable
from unmemorize.core.methods import Subject
from unmemorize.core.model import Condition
from unmemorize.core.results import Match
from unmemorize.core.run import Progress, atomic, digest
from unmemorize.core.sample import trajectory
from unmemorize.core.shards import merge_shards, run_shards
from unmemorize.data.pictures import pixels_of, read_image, save_image
from unmemorize.data.source import Prompt
from unmemorize.jobs.copies import CopyCheck, Distances
from unmemorize.metrics.permutation import nearness_test
from unmemorize.metrics.similarity import References, small

Row = dict[str, Any]
MIRRORED = 256  # pictures that are mirrored together


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
    subject: Subject, chosen: Sequence[Prompt], run: Path, progress: Progress, *, seeds: Sequence[int]
) -> None:
    """Write a PNG per prompt and seed to `images/`, and `scores/images.parquet` with the magnitude along the way."""
    pairs = [(prompt, seed) for prompt in chosen for seed in seeds]

    def work(shard: Sequence[tuple[Prompt, int]]) -> list[Row]:
        cond = subject.model.encode([prompt.text for prompt, _ in shard])
        images, curves = _sampled(subject, cond, [seed for _, seed in shard])
        rows = []
        for (prompt, seed), image, curve in zip(shard, images, curves, strict=True):
            name = f"images/{prompt.id}-{seed}.png"
            save_image(image, run / name)
            rows.append({"id": prompt.id, "seed": seed, "image": name, "curve": curve})
        return rows

    for done in run_shards(pairs, work, folder=run / "shards" / "generate", size=16):
        progress("generate", done, len(pairs))
    merge_shards(run / "shards" / "generate", run / "scores" / "images.parquet")


def _sampled(subject: Subject, cond: Condition, seeds: Sequence[int]) -> tuple[Tensor, list[list[float] | None]]:
    """Pictures, and the magnitude at every step of each: guidance computes what it needs anyway."""
    curves = []
    for step in trajectory(subject.model, cond, seeds=seeds, sampler=subject.sampler):
        if step.uncond is not None:
            curves.append(step.cond.gap(step.uncond))
    with torch.no_grad():
        images = subject.model.decode(step.x_next)
    return images, torch.stack(curves, dim=1).tolist() if curves else [None] * len(seeds)


def verify_pictures(run: Path, check: CopyCheck) -> None:
    """Compare the generated pictures with the training pictures: `scores/verify.parquet` and `references/`.

    What is kept of a training picture is what was compared: its upright centre at the model's size.
    """
    rows = _generated(run)
    references, matches = check.references, check.match(_pixels(run, rows))
    captions = dict(zip(references.names, references.captions, strict=True))
    found = [row | _match_row(match, captions[match.nearest]) for row, match in zip(rows, matches, strict=True)]
    place = {name: row for row, name in enumerate(references.names)}
    for name in {m.nearest for m in matches}:
        save_image(references[[place[name]]].images[0], run / reference_name(name))
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
    images = distances.features(_pixels(run, rows))
    training = _Compared(references.small, references.kept, distances.features(references.pixels))
    if held_out is None:
        mirrored = [distances.features(part.flip(-1)) for part in references.pixels.split(MIRRORED)]
        other = _Compared(training.small.flip(-1), training.keep.flip(-1), torch.cat(mirrored))
        groups = training.groups(other, distances)
    else:
        pictures = small(held_out)
        given = _Compared(pictures, torch.ones(len(pictures), *pictures.shape[2:]), distances.features(held_out))
        training, other = _comparable(training, given, distances)
        groups = np.arange(len(training) + len(other))
    near = distances.between(images, training.features).numpy()
    far = distances.between(images, other.features).numpy()
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


@dataclass(frozen=True)
class _Compared:
    """Pictures (n, 3, 64, 64), which of their pixels count, (n, 64, 64), and what is compared of them, (n, …)."""

    small: Tensor
    keep: Tensor
    features: Tensor

    def __len__(self) -> int:
        return len(self.small)

    def __getitem__(self, rows: np.ndarray) -> _Compared:
        return _Compared(self.small[rows], self.keep[rows], self.features[rows])

    def groups(self, other: _Compared, distances: Distances) -> np.ndarray:
        """The groups of duplicates among these and others."""
        return distances.groups(
            torch.cat([self.small, other.small]),
            torch.cat([self.keep, other.keep]),
            torch.cat([self.features, other.features]),
        )


def _comparable(training: _Compared, held_out: _Compared, distances: Distances) -> tuple[_Compared, _Compared]:
    """The pictures of either set to compare: one a group of duplicates, none of a group of both, as many of each."""
    size = min(len(training), len(held_out))
    chosen, others = training[_sample(len(training), size)], held_out[_sample(len(held_out), size)]
    groups = chosen.groups(others, distances)
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


def _pixels(run: Path, rows: Sequence[Row]) -> Tensor:
    """The generated pictures' bytes, (n, 3, h, w)."""
    return torch.stack([pixels_of(read_image(run / row["image"])) for row in rows])


def _match_row(match: Match, caption: str | None) -> Row:
    values = {"distance": match.distance, "ratio": match.value, "verdict": match.verdict}
    return {"nearest": reference_name(match.nearest), "caption": caption} | values


def reference_name(name: str) -> str:
    """Where a training picture is kept in the run directory."""
    # A training picture's own name may hold anything; in the run directory it is known by a hash.
    return f"references/{digest([os.fsencode(name)])[:16]}.png"
