"""The measures of locality equal plain loops and scipy's, and see what was planted."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist

from unmemorize.core.methods import Localizer, Subject
from unmemorize.core.model import Condition
from unmemorize.core.results import Localization
from unmemorize.localize.locality import chance_overlaps, distances, mean_over_pairs, measure, overlaps, selections
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


def test_disjoint_channels_do_not_overlap(planted, usual):
    """Two embeddings that drive a channel each: NeMo finds two sets with nothing in common, and equal ones for one."""
    planted.denoiser.mid_block.attn2.to_v.weight.data[5, 2] = 1  # so that input 2 drives the channel of input 5, too
    embeds = 0.001 * torch.ones(3, 3, 8)
    embeds[0, :, 5], embeds[1, :, 5], embeds[2, :, 2] = 1, 1, 1
    selected = selections(Subject(planted), Condition(embeds), replace(NEMO, reference=usual))
    down = [masks["down_blocks.0.attn2.to_v"].nonzero()[:, 0].int().numpy() for masks in selected]
    assert [units.tolist() for units in down] == [[5], [5], [2]]
    assert overlaps(down).tolist() == [1, 0, 0]


@dataclass(frozen=True)
class FirstTokens(Localizer):
    """Selects as many channels as the first value of an embedding says, and knows of no prompts by themselves."""

    name = "first-tokens"

    def find(self, subject, cond, *, ordinary=None, progress=None):
        count = int(cond.embeds[:, 0, 0].sum())
        return Localization(self.name, "channels", {"a": torch.arange(8) < count}, {}, (), (), 0)


def test_any_localizer_is_asked_for_one_embedding_at_a_time(planted):
    """Where it gives no units by prompt, what it finds for several is not what each of them has."""
    embeds = torch.zeros(3, 3, 8)
    embeds[:, 0, 0] = torch.tensor([1.0, 2.0, 5.0])
    selected = selections(Subject(planted), Condition(embeds), FirstTokens())
    assert [int(masks["a"].sum()) for masks in selected] == [1, 2, 5]


def test_layers_are_measured_by_method():
    """One layer that two methods look at is two rows; an embedding without it has selected nothing there."""
    one, both = ("wanda", "a"), ("nemo", "a")
    units = {name: np.array(numbers, np.int32) for name, numbers in {"x": [0, 1], "y": [1, 2]}.items()}
    chosen = {"group": [{one: units["x"], both: units["x"]}, {one: units["y"]}]}
    measured = measure({"group": np.array([3.0])}, chosen, {one: 4, both: 8})
    assert [(layer.method, layer.units) for layer in measured.layers] == [("wanda", 4), ("nemo", 8)]
    assert [layer.agreement["group"].value for layer in measured.layers] == [pytest.approx(1 / 3), 0]
    assert [layer.selected["group"] for layer in measured.layers] == [2, 1]
    assert measured.distance["group"].value == 3
