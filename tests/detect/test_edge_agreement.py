"""Edges of one-step pictures: SciPy's Sobel filter, and models of which it is known where edges are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import sobel

from unmemorize.core.errors import UserError
from unmemorize.core.methods import Subject
from unmemorize.core.sample import generators
from unmemorize.detect.edge_agreement import EdgeAgreement, gradients, reduced


def test_the_gradients_are_scipy_s():
    pictures = torch.rand(2, 3, 9, 7, generator=torch.Generator().manual_seed(1))
    x = pictures.numpy()
    lengths = np.zeros_like(x)
    for n in range(2):
        for c in range(3):
            lengths[n, c] = np.hypot(sobel(x[n, c], axis=0, mode="nearest"), sobel(x[n, c], axis=1, mode="nearest"))
    assert torch.allclose(gradients(pictures), torch.tensor(lengths.sum(axis=1)), atol=1e-5)


def test_only_large_pictures_are_reduced():
    assert reduced(torch.rand(1, 3, 512, 768)).shape == (1, 3, 256, 384)
    assert reduced(torch.rand(1, 3, 64, 64)).shape == (1, 3, 64, 64)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow"])
def test_edges_count_where_more_than_half_of_the_seeds_have_them(make_oracle, kind):
    """By hand from the closed form's clean latents, in every parameterisation; and the same at every seed."""
    model = make_oracle(kind)
    result = EdgeAgreement(threshold=1.0).score(Subject(model), model.encode(["one", "pair"]), seeds=[3, 4, 5])
    noise = model.noise(generators([3, 4, 5]))
    schedule = model.schedule(model.steps)
    t = schedule.timesteps[0]
    x = schedule.scale(noise * schedule.initial_scale, t)
    alpha, sigma = model.alpha_sigma(t)
    for row, prompt in enumerate(["one", "pair"]):
        means = [model.denoiser(x, alpha, sigma, model.encode([text] * 3).embeds) for text in (prompt, "")]
        pictures = model.decode(means[1] + 7.5 * (means[0] - means[1]))
        edges = gradients(pictures.float()) > 1.0
        expected = (edges.sum(dim=0) >= 2).float().mean()
        assert result.by_seed[row].tolist() == pytest.approx([float(expected)] * 3, abs=1e-6)
    assert result.by_seed[0, 0] > 0


def test_one_seed_agrees_with_nobody(oracle):
    with pytest.raises(UserError, match="two or more"):
        EdgeAgreement().score(Subject(oracle), oracle.encode(["one"]), seeds=[0])
