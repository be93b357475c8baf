"""Random changes to prompts: what is inserted, where, and that a seed fixes it."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unmemorize.mitigate.perturb import add_embedding_noise, add_random_numbers, add_random_words, repeat_random_words

WORDS = st.lists(st.text("abcé日", min_size=1, max_size=5), max_size=8).map(" ".join)


@given(WORDS, st.integers(0, 6), st.integers(0, 1000))
def test_what_was_there_stays_in_order(prompt, count, seed):
    """Taking the insertions out again gives the prompt."""
    for change in (lambda p, **how: add_random_words(p, ["NEW"], **how), add_random_numbers):
        changed = change(prompt, count=count, seed=seed).split()
        assert len(changed) == len(prompt.split()) + count
        assert [w for w in changed if w != "NEW" and not w.isdigit()] == prompt.split()


@given(WORDS, st.integers(0, 6), st.integers(0, 1000))
def test_repetition_adds_the_prompts_own_words(prompt, count, seed):
    """No new word appears, and an empty prompt stays empty."""
    changed = repeat_random_words(prompt, count=count, seed=seed).split()
    more = Counter(changed) - Counter(prompt.split())
    assert set(more) <= set(prompt.split())
    assert more.total() == (count if prompt else 0)


def test_places_and_words_are_spread():
    """Every place is used and every word drawn."""
    found = [add_random_words("a b", ["x", "y"], count=1, seed=s).split() for s in range(200)]
    places = Counter(next(i for i, w in enumerate(words) if w in "xy") for words in found)
    assert set(places) == {0, 1, 2}
    assert min(places.values()) > 40
    assert {w for words in found for w in words} == {"a", "b", "x", "y"}


def test_numbers_are_below_a_hundred_thousand():
    """As the baseline is defined."""
    numbers = [int(n) for n in add_random_numbers("", count=500, seed=0).split()]
    assert 0 <= min(numbers) < 5_000
    assert 95_000 < max(numbers) < 100_000


def test_a_seed_fixes_the_change():
    """The same seed changes a prompt in the same way, another in another."""
    assert add_random_numbers("a", seed=1) == add_random_numbers("a", seed=1) != add_random_numbers("a", seed=2)


def test_embedding_noise_has_the_stated_size():
    """Its standard deviation is `scale`, and the dtype is the embedding's."""
    embeds = torch.ones(77, 768, dtype=torch.float16)
    noisy = add_embedding_noise(embeds, scale=0.2, seed=0)
    assert noisy.dtype == torch.float16
    assert (noisy.float() - 1).std().item() == pytest.approx(0.2, rel=0.02)
