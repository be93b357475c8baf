"""How local a memory is: do the embeddings that bring one picture back lie together, and use the same weights?"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.spatial.distance import squareform
from torch import Tensor

from unmemorize.core.methods import Localizer, Subject, settings
from unmemorize.core.model import Condition
from unmemorize.core.records import Interval

Floats = NDArray[np.float64]
Units = NDArray[np.int32]  # numbers of a layer's channels, or of its weights row by row
Layer = tuple[str, str]  # a method, and a layer that it looks at
Selected = Mapping[Layer, Units]  # for one embedding
ROUNDS = 1000  # of the bootstrap


@dataclass(frozen=True)
class LayerLocality:
    """What a method selects in one layer, by group of embeddings.

    Attributes:
        method: The method.
        layer: The layer.
        units: How many units the layer has.
        agreement: The overlap of what two embeddings have selected.
        chance: That of random sets of the sizes that were selected.
        selected: How many units are selected for an embedding, on average.
    """

    method: str
    layer: str
    units: int
    agreement: Mapping[str, Interval]
    chance: Mapping[str, float]
    selected: Mapping[str, float]


@dataclass(frozen=True)
class Locality:
    """Both tests by group of embeddings: the `distance` of the embeddings, and the layers of every method."""

    distance: Mapping[str, Interval]
    layers: tuple[LayerLocality, ...]


def distances(points: Tensor) -> Floats:
    """L2 distances of all pairs of rows, flattened and not normalised: (n·(n − 1)/2,) in the order of scipy's pdist.

    Paper: Kowalczuk et al. 2026, locality in the embedding space.
    """
    return torch.pdist(points.detach().flatten(1).float()).double().cpu().numpy()


def overlaps(sets: Sequence[Units]) -> Floats:
    """Intersection over union of all pairs of sets, 1 where both are empty: (n·(n − 1)/2,), ordered as `distances`.

    Paper: Kowalczuk et al. 2026, weight agreement.
    """
    sizes = np.array([len(s) for s in sets])
    units = np.concatenate(sets)
    starts = np.concatenate([[0], sizes.cumsum()])
    member = csr_array((np.ones(len(units)), units, starts), shape=(len(sets), int(units.max(initial=0)) + 1))
    return _share((member @ member.T).toarray(), sizes)


def chance_overlaps(sizes: Sequence[int], units: int, seed: int = 0) -> Floats:
    """The same of random sets of these sizes among `units`."""
    size = np.asarray(sizes)
    drawn = np.random.default_rng(seed).hypergeometric(size[:, None], units - size[:, None], size[None])
    return _share(drawn.astype(float), size)


def _share(common: Floats, sizes: NDArray[np.int64]) -> Floats:
    joined = sizes[:, None] + sizes - common
    return np.where(joined == 0, 1.0, common / np.maximum(joined, 1))[np.triu_indices(len(sizes), 1)]


def mean_over_pairs(values: Floats, seed: int = 0) -> Interval:
    """The mean of values of pairs, (n·(n − 1)/2,), with its 95% interval: embeddings are drawn again, not pairs."""
    matrix = squareform(values, checks=False)
    n = len(matrix)
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=ROUNDS)
    pairs = n * n - np.square(counts).sum(1)  # of two that are not the same one twice
    counts, pairs = counts[pairs > 0], pairs[pairs > 0]
    return _interval(float(values.mean()), ((counts @ matrix) * counts).sum(1) / pairs)


def mean_over(values: Floats, seed: int = 0) -> Interval:
    """The mean of one value an embedding, with its 95% interval."""
    picks = np.random.default_rng(seed).integers(len(values), size=(ROUNDS, len(values)))
    return _interval(float(values.mean()), values[picks].mean(1))


def _interval(value: float, drawn: Floats) -> Interval:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(value, float(low), float(high))


def selections(
    subject: Subject, cond: Condition, localizer: Localizer, ordinary: Condition | None = None
) -> list[Mapping[str, Tensor]]:
    """What a method selects for every embedding by itself: its masks by layer; none where it selects nothing.

    Raises:
        NotApplicable: The model lacks the layers that it looks at.
    """
    if "per_prompt" in settings(localizer):
        alone: Any = localizer
        localizer = replace(alone, per_prompt=True)
    by_prompt = localizer.find(subject, cond, ordinary=ordinary).per_prompt
    if len(by_prompt) == len(cond):
        return [units.masks for units in by_prompt]
    return [localizer.find(subject, cond[[i]], ordinary=ordinary).masks for i in range(len(cond))]


def measure(
    spread: Mapping[str, Floats], chosen: Mapping[str, Sequence[Selected]], layers: Mapping[Layer, int]
) -> Locality:
    """Measure both tests of locality.

    Args:
        spread: `distances` of each group's embeddings.
        chosen: What each embedding of each group has selected.
        layers: How many units each layer has.
    """
    return Locality(
        distance={group: mean_over_pairs(values) for group, values in spread.items()},
        layers=tuple(_layer(layer, units, chosen) for layer, units in layers.items()),
    )


def _layer(layer: Layer, units: int, chosen: Mapping[str, Sequence[Selected]]) -> LayerLocality:
    none = np.zeros(0, np.int32)
    sets = {group: [selected.get(layer, none) for selected in members] for group, members in chosen.items()}
    sizes = {group: [len(s) for s in members] for group, members in sets.items()}
    method, name = layer
    return LayerLocality(
        method=method,
        layer=name,
        units=units,
        agreement={group: mean_over_pairs(overlaps(members)) for group, members in sets.items()},
        chance={group: float(chance_overlaps(counts, units).mean()) for group, counts in sizes.items()},
        selected={group: float(np.mean(counts)) for group, counts in sizes.items()},
    )


def short(layer: str) -> str:
    """A module's name without the parts that all names share."""
    return re.sub(r"_blocks?|attentions\.|transformer_blocks\.|\.(attn2\.to_v|ff\.net\.2)$", "", layer)
