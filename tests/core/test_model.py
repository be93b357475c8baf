"""Conversions between parameterisations, and conditions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unmemorize.core.model import Condition, Prediction


def truth(seed, count=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, count, 2, 4, 4, generator=generator, dtype=torch.float64)


def trained_as(kind, x0, eps, alpha, sigma):
    output = {"epsilon": eps, "sample": x0, "v_prediction": alpha * eps - sigma * x0, "flow": eps - x0}[kind]
    return Prediction(output, kind, alpha * x0 + sigma * eps, alpha, sigma)


def assert_tells(prediction, x0, eps, alpha, sigma):
    for found, expected in [
        (prediction.eps, eps),
        (prediction.x0, x0),
        (prediction.v, alpha * eps - sigma * x0),
        (prediction.score, -eps / sigma),
    ]:
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@given(seed=st.integers(0, 10**6), angle=st.floats(0.02, math.pi / 2 - 0.02))
def test_variance_preserving_parameterisations_agree(kind, seed, angle):
    """ε, x0, v and the score are the truth's, whichever of ε, x0 and v the model was trained to predict."""
    x0, eps = truth(seed)
    alpha, sigma = (torch.tensor(f(angle), dtype=torch.float64).reshape(1, 1, 1, 1) for f in (math.cos, math.sin))
    assert_tells(trained_as(kind, x0, eps, alpha, sigma), x0, eps, alpha, sigma)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "flow"])
@given(seed=st.integers(0, 10**6), level=st.floats(0.02, 0.98))
def test_flow_parameterisations_agree(kind, seed, level):
    """On the straight path x = (1 − σ)·x0 + σ·ε a flow model's ε, x0, v and score are those of the others."""
    x0, eps = truth(seed)
    sigma = torch.tensor(level, dtype=torch.float64).reshape(1, 1, 1, 1)
    assert_tells(trained_as(kind, x0, eps, 1 - sigma, sigma), x0, eps, 1 - sigma, sigma)


@given(seed=st.integers(0, 10**6), angles=st.lists(st.floats(0.02, 1.55), min_size=3, max_size=3))
def test_every_row_may_have_its_own_timestep(seed, angles):
    """With one α and σ per row, each row is converted with its own."""
    x0, eps = truth(seed)
    angle = torch.tensor(angles, dtype=torch.float64).reshape(3, 1, 1, 1)
    assert_tells(trained_as("v_prediction", x0, eps, angle.cos(), angle.sin()), x0, eps, angle.cos(), angle.sin())


def test_the_sign_of_a_v_models_guidance_is_the_noises():
    """The conditional minus unconditional ε of a v model points as it would in an ε model: not reversed."""
    x0, eps = truth(0)
    alpha, sigma = (torch.full((1, 1, 1, 1), v, dtype=torch.float64) for v in (0.6, 0.8))
    x = alpha * x0 + sigma * eps
    other = eps + 1.0
    v, w = (alpha * e - sigma * (x - sigma * e) / alpha for e in (eps, other))
    gap = Prediction(w, "v_prediction", x, alpha, sigma).eps - Prediction(v, "v_prediction", x, alpha, sigma).eps
    assert torch.allclose(gap, torch.ones_like(gap))


@pytest.fixture
def cond():
    return Condition(torch.arange(24.0).reshape(4, 3, 2), torch.arange(12).reshape(4, 3))


def test_condition_rows_are_taken_from_every_field(cond):
    """A slice and a list of rows take the same rows of embeddings and ids; a missing field stays missing."""
    part = cond[1:3]
    assert len(part) == 2
    assert torch.equal(part.embeds, cond.embeds[1:3])
    assert torch.equal(part.ids, cond.ids[1:3])
    assert part.mask is None
    picked = cond[torch.tensor([3, 3, 0])]
    assert torch.equal(picked.embeds, cond.embeds[[3, 3, 0]])
    assert torch.equal(picked.ids, cond.ids[[3, 3, 0]])


def test_followed_by_stacks_conditions_and_drops_fields_only_one_has(cond):
    """The first condition's rows come first; a field that one of them lacks is left out."""
    both = cond[:1].followed_by(cond[1:])
    assert torch.equal(both.embeds, cond.embeds)
    assert torch.equal(both.ids, cond.ids)
    assert both.mask is None
    assert cond.followed_by(Condition(cond.embeds)).ids is None


def test_prediction_rows_tell_what_the_whole_tells():
    """The rows of a prediction are the rows of its noise, picture and velocity."""
    x0, eps = truth(1)
    alpha, sigma = (torch.full((1, 1, 1, 1), v, dtype=torch.float64) for v in (0.6, 0.8))
    whole = trained_as("v_prediction", x0, eps, alpha, sigma)
    part = whole[1:]
    assert torch.equal(part.eps, whole.eps[1:])
    assert torch.equal(part.x0, whole.x0[1:])
    assert torch.equal(part.v, whole.v[1:])
