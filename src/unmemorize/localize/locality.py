"""How local a memory is: do the embeddings that bring one picture back lie together, and use the same weights?"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.spatial.distance import squareform
from torch import Tensor

from unmemorize.core.batches import at_once
from unmemorize.core.hooks import observed
from unmemorize.core.methods import Subject
from unmemorize.core.model import Condition, DiffusionModel, Reach
from unmemorize.core.results import Interval
from unmemorize.localize.nemo import Nemo
from unmemorize.localize.reference import Start
from unmemorize.localize.wanda import Wanda

Floats = NDArray[np.float64]
Units = NDArray[np.int32]  # numbers of a layer's channels, or of its weights row by row
Selected = Mapping[str, Units]  # by layer, for one embedding
Layers = Mapping[str, tuple[str, int]]  # a layer's method, and how many units it has
ROUNDS = 1000  # of the bootstrap


@dataclass(frozen=True)
class LayerLocality:
    """One layer's measures by group of embeddings: `discrepancy` of activations, `agreement` of selected units.

    `units` is how many the layer has, `selected` how many a method selects for an embedding on average, and `chance`
    the agreement of random sets of the sizes that were selected.
    """

    method: str
    layer: str
    units: int
    discrepancy: Mapping[str, Interval]
    agreement: Mapping[str, Interval]
    chance: Mapping[str, float]
    selected: Mapping[str, float]


@dataclass(frozen=True)
class Between:
    """How alike two methods' shares over blocks are, 0 to 1: of the same embedding, and of two of one group."""

    same: Interval
    different: float


@dataclass(frozen=True)
class Locality:
    """The three tests by group of embeddings: `distance` of the embeddings, the layers, and NeMo beside Wanda."""

    distance: Mapping[str, Interval]
    layers: tuple[LayerLocality, ...]
    between_methods: Mapping[str, Between]


def distances(points: Tensor) -> Floats:
    """L2 distances of all pairs of rows, flattened and not normalised: (n·(n − 1)/2,) in the order of scipy's pdist.

    Paper: Kowalczuk et al. 2026, locality in the embedding space and the activation discrepancy.
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


def value_activations(model: DiffusionModel, cond: Condition, reach: Reach = "all") -> Iterator[tuple[str, Tensor]]:
    """What each value projection returns, which depends on the text alone: (embeddings, tokens · channels) by name."""
    with torch.no_grad():
        inputs = model.text_inputs(cond)
        for name, layer in model.text_projections(reach).items():
            yield name, layer(inputs).flatten(1)


def feed_forward_activations(
    model: DiffusionModel, cond: Condition, *, seed: int = 0, steps: int = 50, batch: int = 64
) -> Iterator[tuple[str, Tensor]]:
    """Inner activations of each feed-forward at the first sampling step and one noise: (embeddings, tokens · inputs).

    Layers come one at a time, each from evaluations of its own: those of a large model do not fit into memory together.
    """
    start = Start.of(model, [seed], steps)
    for name in model.feed_forwards():
        rows: list[Tensor] = []

        def keep(inputs: Tensor, rows: list[Tensor] = rows) -> None:
            rows.append(inputs.flatten(1).cpu())

        with observed(model.denoiser, {name: keep}), torch.no_grad():
            for part in torch.arange(len(cond)).split(at_once(model, batch)):
                model.predict(start.x.expand(len(part), -1, -1, -1), start.t, cond[part])
        yield name, torch.cat(rows)


def selections(model: DiffusionModel, cond: Condition, nemo: Nemo, wanda: Wanda) -> list[dict[str, Units]]:
    """What NeMo and Wanda each select for every embedding by itself: numbers of channels and of weights by layer."""
    channels = nemo.find(Subject(model), cond).per_prompt
    weights = replace(wanda, per_prompt=True).find(Subject(model), cond).per_prompt
    selected = []
    for by_nemo, by_wanda in zip(channels, weights, strict=True):
        masks = {**by_nemo.masks, **by_wanda.masks}
        selected.append({name: mask.flatten().nonzero()[:, 0].int().numpy() for name, mask in masks.items()})
    return selected


def layer_units(model: DiffusionModel, reach: Reach = "all") -> Layers:
    """Every layer that the methods look at, first executed first: its method and how many units it has."""
    channels = {name: ("nemo", m.out_features) for name, m in model.text_projections(reach).items()}
    return channels | {name: ("wanda", m.weight.numel()) for name, m in model.feed_forwards().items()}


def block_shares(selected: Sequence[Selected], layers: Mapping[str, int]) -> Floats:
    """How the selected units spread over a method's layers, each in proportion to its size: rows of sum 1 or 0."""
    shares = np.array([[len(found.get(name, ())) / units for name, units in layers.items()] for found in selected])
    spread: Floats = shares / np.maximum(shares.sum(1, keepdims=True), 1e-12)
    return spread


def between(first: Floats, second: Floats) -> Between:
    """How alike two methods' shares over blocks (n, blocks) are: Σ min / Σ max, which is the overlap of 0s and 1s."""
    low = np.minimum(first[:, None], second[None]).sum(2)
    high = np.maximum(first[:, None], second[None]).sum(2)
    alike = np.where(high == 0, 1.0, low / np.maximum(high, 1e-12))
    return Between(mean_over(alike.diagonal()), float(alike[~np.eye(len(alike), dtype=bool)].mean()))


def measure(
    spread: Mapping[str, Mapping[str, Floats]], chosen: Mapping[str, Sequence[Selected]], layers: Layers
) -> Locality:
    """The tests from each group's `distances` by layer, those of the embeddings under "", and `selections`."""
    return Locality(
        distance={group: mean_over_pairs(found[""]) for group, found in spread.items()},
        layers=tuple(_layer(name, spread, chosen, layers) for name in layers),
        between_methods={group: between(*_both(some, layers)) for group, some in chosen.items()},
    )


def _layer(
    name: str, spread: Mapping[str, Mapping[str, Floats]], chosen: Mapping[str, Sequence[Selected]], layers: Layers
) -> LayerLocality:
    method, units = layers[name]
    none = np.zeros(0, np.int32)
    sets = {group: [one.get(name, none) for one in some] for group, some in chosen.items()}
    sizes = {group: [len(s) for s in some] for group, some in sets.items()}
    return LayerLocality(
        method=method,
        layer=name,
        units=units,
        discrepancy={group: mean_over_pairs(found[name]) for group, found in spread.items()},
        agreement={group: mean_over_pairs(overlaps(some)) for group, some in sets.items()},
        chance={group: float(chance_overlaps(some, units).mean()) for group, some in sizes.items()},
        selected={group: float(np.mean(some)) for group, some in sizes.items()},
    )


def _both(some: Sequence[Selected], layers: Layers) -> list[Floats]:
    """NeMo's and Wanda's shares over the transformer blocks that both look at."""
    blocks: dict[str, dict[str, str]] = {}
    for name, (method, _) in layers.items():
        blocks.setdefault(re.split(r"\.(?:attn2|ff)\.", name)[0], {})[method] = name
    names = [[block[method] for block in blocks.values() if len(block) == 2] for method in ("nemo", "wanda")]
    return [block_shares(some, {name: layers[name][1] for name in own}) for own in names]


def tsne(points: Tensor, seed: int = 0) -> Floats:
    """A map of the rows in the plane, (n, 2): near rows stay near, and its long distances mean nothing."""
    from sklearn.manifold import TSNE

    flat = points.detach().flatten(1).float().cpu().numpy()
    perplexity = min(30.0, (len(flat) - 1) / 3)
    plane: Floats = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(flat).astype(float)
    return plane
