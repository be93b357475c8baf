"""Related prompts, against the similarity of all pairs."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy.sparse.csgraph import connected_components

from unmemorize.metrics.related import related


def test_related_prompts_share_a_cluster():
    """Prompts that share most of their words are linked, also through a third; others and empty ones stand alone."""
    names = related(
        [
            "a red fox in deep snow",
            "a red fox in deep water",
            "a blue fox in deep water",
            "the old harbour",
            "",
            "漢字 かな",
        ]
    )
    assert names[0] == names[1] == names[2]
    assert len({names[0], *names[3:]}) == 4


def test_relatedness_depends_on_words_not_on_their_order_or_number():
    """Word order and repetition do not matter, and one shared word of six does not relate two prompts."""
    names = related(["one two three", "three two one one one", "one four five six seven eight"])
    assert names[0] == names[1] != names[2]


def compared(prompts, overlap):
    """The same by comparing all pairs of prompts."""
    words = [set(p.lower().split()) or {"∅"} for p in prompts]
    links = [[len(a & b) > overlap * len(a | b) for b in words] for a in words]
    return [str(c) for c in connected_components(np.array(links), directed=False)[1]]


@pytest.mark.parametrize("overlap", [0.1, 0.35, 0.5, 0.8])
@pytest.mark.parametrize("seed", range(8))
def test_clusters_are_those_of_all_pairs(seed, overlap):
    """Prompts of 0 to 20 words, frequent and rare ones: the clusters and their names, at several thresholds."""
    rng = np.random.default_rng(seed)
    vocabulary = int(rng.integers(5, 300))
    frequency = 1 / np.arange(1, vocabulary + 1) ** rng.uniform(0, 1.5)
    longest = int(rng.integers(2, 20))
    prompts = []
    for _ in range(120):
        words = rng.choice(vocabulary, rng.integers(0, longest + 1), p=frequency / frequency.sum())
        prompts.append(" ".join(f"w{i}" for i in words))
    assert related(prompts, overlap) == compared(prompts, overlap)


def test_a_similarity_at_the_threshold_relates_nothing():
    """Seven words of twenty in common, 0.35: the product 0.35 · 20 is 7 but for rounding."""
    one, other = (f"{' '.join(f'w{i}' for i in range(7))} {' '.join(own)}" for own in ("abcdefg", "hijklm"))
    assert len(set(related([one, other]))) == 2
    assert len(set(related([one, other], 0.3499))) == 1


@pytest.mark.parametrize("template", ["photo {i}", "photo {i} {j} {k}", "a photo of {i}"])
def test_a_word_that_all_prompts_have_takes_no_square_of_them(template):
    """20,000 prompts in less than 100 MB, where the pairs that share the word are 400 million."""
    prompts = [template.format(i=f"x{i}", j=f"y{i * 7}", k=f"z{i * 11}") for i in range(20_000)]
    tracemalloc.start()
    try:
        names = related(prompts)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(set(names)) == (1 if template.startswith("a") else 20_000)
    assert peak < 100e6
