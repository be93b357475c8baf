"""Whether generated pictures are nearer to the training pictures than to pictures that were never trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from unmemorize.core.crew import Crew
from unmemorize.core.errors import NotApplicable
from unmemorize.core.run import Progress
from unmemorize.core.shards import write_rows
from unmemorize.metrics.permutation import nearness_test
from unmemorize.metrics.similarity import References, small
from unmemorize.stages.calibrate import LEVEL
from unmemorize.stages.inputs import Inputs
from unmemorize.stages.pictures import bytes_of, generated
from unmemorize.stages.stage import Stage
from unmemorize.study.copies import Distances, distances

MIRRORED = 256  # pictures that are mirrored together


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
    rows = generated(run)
    images = distances.features(bytes_of(run, rows))
    training = _Compared(references.small, references.keep, distances.of_references(references))
    if held_out is None:
        features = [distances.features(part.flip(-1)) for part in references.pixels.split(MIRRORED)]
        other = _Compared(training.small.flip(-1), training.keep.flip(-1), torch.cat(features))
        groups = training.groups(other, distances)
    else:
        pictures = small(held_out)
        given = _Compared(pictures, torch.ones(len(pictures), *pictures.shape[2:]), distances.features(held_out))
        training, other = _comparable(training, given, distances)
        groups = np.arange(len(training) + len(other))
    near = distances.between(images, training.features).numpy()
    far = distances.between(images, other.features).numpy()
    control = np.array([row["id"] in ordinary for row in rows])
    mirrored = held_out is None
    tests = []
    for name, members in {"all": np.ones(len(rows), bool), "ordinary prompts": control}.items():
        if members.any():
            test = nearness_test(near[members], far[members], paired=mirrored, groups=groups)
            tests.append({"group": name, "held_out": "mirror images" if mirrored else "pictures given"} | vars(test))
    write_rows(run / "scores" / "nearness.parquet", tests)


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
    """As many pictures of either set: one a group of duplicates, and none of a group that has pictures of both sets."""
    size = min(len(training), len(held_out))
    training = training[_sample(len(training), size)]
    held_out = held_out[_sample(len(held_out), size)]
    groups = training.groups(held_out, distances)
    both = np.intersect1d(groups[:size], groups[size:])
    training = training[_firsts(groups[:size], both)]
    held_out = held_out[_firsts(groups[size:], both)]
    size = min(len(training), len(held_out))
    if not size:
        raise NotApplicable("the pictures given as held out are duplicates of training pictures")
    return training[_sample(len(training), size)], held_out[_sample(len(held_out), size)]


def _firsts(groups: np.ndarray, without: np.ndarray) -> np.ndarray:
    """The first index of each group, leaving out the groups in `without`."""
    names, first = np.unique(groups, return_index=True)
    return first[~np.isin(names, without)]


def _sample(count: int, size: int) -> np.ndarray:
    return np.random.default_rng(0).permutation(count)[:size]


def _work(inputs: Inputs, run: Path, progress: Progress, crew: Crew) -> None:
    spec, references = inputs.spec, inputs.references
    other = inputs.bundle.held_out(inputs.model.image_size)
    plain = distances(spec.sscd, spec.recipe, inputs.model.device)
    compare_held_out(run, references, None if other is None else other.pixels, plain, _control(inputs, run))


def _control(inputs: Inputs, run: Path) -> set[str]:
    """Prompts known to be ordinary; where none is, those whose score ordinary prompts reach easily."""
    known = {p.id for p in inputs.prompts if p.memorable is False}
    calibrated = run / "scores" / "calibrated.parquet"
    if known or not calibrated.exists():
        return known
    return {row["id"] for row in pq.read_table(calibrated).to_pylist() if row["p_value"] > LEVEL}


HELD_OUT = Stage("held-out", "nearness", _work)
