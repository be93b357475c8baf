"""Carlini's clique: on models that give one picture, or another at every seed, and beside all subsets."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from unmemorize.core.errors import UserError
from unmemorize.core.methods import Subject
from unmemorize.core.sample import Sampler
from unmemorize.detect.clique import Clique
from unmemorize.metrics.tiled import tiled_distances

SEEDS = range(5)


def test_a_prompt_of_one_picture_is_a_clique_of_all_seeds_and_a_gaussian_none(make_oracle, make_gaussian):
    """A memorizer ends in its picture, up to rounding; pictures of a wide Gaussian have nothing in common."""
    steps = Sampler(20)
    memorized = Clique().score(Subject(make_oracle(), steps), make_oracle().encode(["one"]), seeds=SEEDS)
    assert torch.allclose(memorized.by_seed, torch.full((1, 5), 5.0), atol=0.05)
    ordinary = Clique().score(Subject(make_gaussian(), steps), make_gaussian().encode(["one"]), seeds=SEEDS)
    assert ((ordinary.by_seed > 0) & (ordinary.by_seed < 1)).all()


def test_the_size_is_that_of_the_largest_set_that_is_all_alike():
    """Beside every subset of pictures, some of which are near to others that are not near to each other."""
    generator = torch.Generator().manual_seed(5)
    base = torch.rand(3, 3, 64, 64, generator=generator)
    noise = torch.rand(9, 3, 64, 64, generator=generator) - 0.5
    pictures = (base.repeat(3, 1, 1, 1) + 0.37 * noise * torch.linspace(0.2, 1.2, 9)[:, None, None, None]).clamp(0, 1)
    distances = tiled_distances(pictures, pictures)
    alike = distances <= 0.15
    assert 0 < int(alike.sum()) - 9 < 18  # within threes of one base some pairs are alike and some are not
    expected = []
    for i in range(9):
        sizes = [0]
        for size in range(1, 10):
            for chosen in combinations(range(9), size):
                if i in chosen and all(alike[a, b] for a, b in combinations(chosen, 2)):
                    sizes.append(size)
        expected.append(max(sizes) - min(float(distances[i, j]) for j in range(9) if j != i))
    assert Clique()._scores(pictures).tolist() == pytest.approx(expected, abs=1e-5)


def test_one_seed_is_no_clique(oracle):
    with pytest.raises(UserError, match="two or more"):
        Clique().score(Subject(oracle), oracle.encode(["one"]), seeds=[0])
