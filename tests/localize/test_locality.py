"""The measures of locality equal plain loops and scipy's, and see what was planted."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist

from unmemorize.core.hooks import observed, record
from unmemorize.core.methods import Subject
from unmemorize.core.model import Condition
from unmemorize.core.results import Localization, PromptUnits
from unmemorize.core.sample import generators
from unmemorize.localize.locality import (
    between,
    block_shares,
    chance_overlaps,
    distances,
    feed_forward_activations,
    layer_units,
    mean_over_pairs,
    overlaps,
    selections,
    tsne,
    value_activations,
)
from unmemorize.localize.nemo import Nemo
from unmemorize.localize.wanda import Wanda

NEMO = Nemo(threshold=0.5, refine=False, layers="all")


def sets(*members):
    return [np.array(some, np.int32) for some in members]


def test_distances_are_scipys():
    """Of flattened rows, in its order, without normalising; also of many values."""
    points = torch.randn(7, 5, 400, generator=torch.Generator().manual_seed(0))
    assert np.allclose(distances(points), pdist(points.flatten(1).double().numpy()), rtol=1e-5)


def test_overlaps_by_hand():
    """|A ∩ B| / |A ∪ B|: 1 of two empty sets, 0 of an empty and a full one."""
    some = sets([0, 1, 2], [2, 3], [], [], [9])
    expected = [
        1.0 if not a | b else len(a & b) / len(a | b)
        for a, b in itertools.combinations([set(s.tolist()) for s in some], 2)
    ]
    assert overlaps(some).tolist() == pytest.approx(expected)
    assert overlaps(some)[0] == pytest.approx(1 / 4)
    assert overlaps(some)[7] == 1
    assert overlaps(sets([], [])).tolist() == [1]


def test_chance_is_what_random_sets_give():
    """Against sets drawn one by one; full and empty sets leave nothing to chance."""
    rng = np.random.default_rng(1)
    sizes = [30] * 60
    drawn = sets(*(rng.choice(100, size, replace=False) for size in sizes))
    assert chance_overlaps(sizes, 100).mean() == pytest.approx(overlaps(drawn).mean(), abs=0.01)
    assert chance_overlaps([0, 0, 100, 100], 100).tolist() == [1, 0, 0, 0, 0, 1]


def test_the_interval_counts_embeddings_not_pairs():
    """One outlier of twelve is in 11 of 66 pairs: an interval over pairs would be too short to miss it."""
    points = np.zeros((12, 1))
    points[0] = 12
    found = mean_over_pairs(pdist(points))
    assert found.value == pytest.approx(2)
    assert found.low == 0
    assert found.high > 4
    assert mean_over_pairs(np.array([3.0])).high == 3


def test_activations_are_what_hooks_see(tiny_model):
    """Values of the text alone; feed-forwards' inputs at the first step and one noise, at any batch size."""
    cond = tiny_model.encode(["a green bicycle", "an owl on a fence", "oden, gadget"])
    schedule = tiny_model.schedule(50)
    x = tiny_model.noise(generators([0])) * schedule.initial_scale
    values, inner = (
        list(tiny_model.text_projections()),
        {n: [] for n in tiny_model.feed_forwards()},
    )
    watched = observed(tiny_model.denoiser, {name: rows.append for name, rows in inner.items()})
    with record(tiny_model.denoiser, values) as outputs, watched, torch.no_grad():
        for i in range(3):
            tiny_model.predict(schedule.scale(x, schedule.timesteps[0]), schedule.timesteps[0], cond[i : i + 1])
    for name, found in value_activations(tiny_model, cond):
        assert torch.allclose(found, torch.cat(outputs[name]).flatten(1), atol=1e-6)
    for batch in (2, 64):
        found = dict(feed_forward_activations(tiny_model, cond, batch=batch))
        assert list(found) == list(inner)
        assert all(torch.allclose(a, torch.cat(inner[n]).flatten(1), atol=1e-5) for n, a in found.items())
    different = dict(feed_forward_activations(tiny_model, cond, seed=1))
    assert not any(torch.allclose(a, different[n]) for n, a in found.items())


def test_embeddings_select_what_their_prompts_select(tiny_model, planted, usual):
    """NeMo and Wanda give the same for a prompt and for its embedding; numbers stand for the masks' places."""
    prompts = ["a new prompt", "memorized"]
    given = Condition(planted.encode(prompts).embeds)
    nemo = replace(NEMO, reference=usual)
    by_text, by_embedding = (nemo.find(Subject(planted), cond).per_prompt for cond in (planted.encode(prompts), given))
    for a, b in zip(by_text, by_embedding, strict=True):
        assert a.facts == b.facts
        assert all(torch.equal(mask, b.masks[name]) for name, mask in a.masks.items())
    assert by_embedding[1].prompt == "embedding 1"
    texts = ["an owl on a fence", "the old harbour"]
    wanda, cond = Wanda(sparsity=0.1, per_prompt=True), tiny_model.encode(texts)
    a, b = (wanda.find(Subject(tiny_model), given) for given in (cond, cond.with_embeds(cond.embeds)))
    for one, other in zip(a.per_prompt, b.per_prompt, strict=True):
        assert all(torch.equal(mask, other.masks[name]) for name, mask in one.masks.items())


def test_disjoint_channels_do_not_overlap(planted, usual, monkeypatch):
    """Two embeddings that drive a channel each: NeMo finds two sets with nothing in common, and equal ones for one."""
    none = Localization("wanda", "weights", {}, {}, (), (), 0, (PromptUnits("", {}, {}),) * 3)
    planted.denoiser.mid_block.attn2.to_v.weight.data[5, 2] = 1  # so that input 2 drives the channel of input 5, too
    monkeypatch.setattr(Wanda, "find", lambda *args, **options: none)
    embeds = 0.001 * torch.ones(3, 3, 8)
    embeds[0, :, 5], embeds[1, :, 5], embeds[2, :, 2] = 1, 1, 1
    found = selections(planted, Condition(embeds), replace(NEMO, reference=usual), Wanda(sparsity=0.1))
    down = [one["down_blocks.0.attn2.to_v"] for one in found]
    assert [units.tolist() for units in down] == [[5], [5], [2]]
    assert overlaps(down).tolist() == [1, 0, 0]


def test_methods_that_look_at_the_same_block_are_alike():
    """Alike where an embedding's units of both methods lie in one block, and another's elsewhere."""
    layers, weights = {"a": 4, "b": 8}, {"x": 100, "y": 50}
    first = block_shares([{"a": [0, 1]}, {"b": [3]}, {}], layers)
    second = block_shares([{"x": [5]}, {"y": [7, 8]}, {}], weights)
    assert first.tolist() == [[1, 0], [0, 1], [0, 0]]
    found = between(first, second)
    assert found.same.value == 1
    assert found.different == 0
    assert block_shares([{"a": [0], "b": [1, 2]}], layers).tolist() == [[0.5, 0.5]]


def test_units_and_map(tiny_model):
    """Every layer with its method and size; the map has a place for each row and is the same again."""
    units = layer_units(tiny_model)
    assert {method for method, _ in units.values()} == {"nemo", "wanda"}
    modules = dict(tiny_model.denoiser.named_modules())
    for name, (method, count) in units.items():
        assert count == (modules[name].out_features if method == "nemo" else modules[name].weight.numel())
    points = torch.randn(9, 2, 3, generator=torch.Generator().manual_seed(0))
    assert tsne(points).shape == (9, 2)
    assert np.array_equal(tsne(points), tsne(points))
