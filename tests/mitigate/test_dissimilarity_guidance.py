"""Guidance away from known pictures: how far it moves, in every parameterisation, and whom it leaves alone."""

from __future__ import annotations

import pytest
import torch

from unmemorize.core.errors import UserError
from unmemorize.core.methods import Subject, parse
from unmemorize.core.model import Prediction
from unmemorize.core.sample import Sampler, sample
from unmemorize.mitigate.dissimilarity_guidance import displacement

KINDS = ["epsilon", "v_prediction", "sample", "flow"]


def known_of(model):
    """The latents of the pictures that the oracle memorizes."""
    return model.denoiser.images.float()


def drawn(model, mitigation, pictures):
    """Final latents for two prompts, with and without the mitigation."""
    subject, cond = Subject(model, Sampler(10, 1.0)), model.encode(["one", "pair"])
    with parse("mitigation", mitigation).fitted(subject, pictures=pictures).applied(subject) as changed:
        moved = sample(model, cond, seeds=[0, 1], sampler=changed.sampler)
    return sample(model, cond, seeds=[0, 1], sampler=subject.sampler), moved


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_memorizer_draws_is_kept_at_the_distance(make_oracle, kind):
    """Without it a picture is the training picture itself; with it, the stated share of the mean distance away."""
    model = make_oracle(kind)
    known = known_of(model)
    plain, moved = drawn(model, "dissimilarity-guidance:near=0.3", known)
    for latents, nearer in ((plain, True), (moved, False)):
        distances = torch.cdist(latents.flatten(1).float(), known.flatten(1))
        ratio = distances.amin(dim=1) / distances.mean(dim=1)
        assert (ratio < 0.1).all() if nearer else (ratio > 0.25).all()


def test_pictures_that_are_not_near_are_the_same_bytes(make_oracle):
    model = make_oracle("epsilon")
    plain, moved = drawn(model, "dissimilarity-guidance:near=0.3", known_of(model) + 50)
    assert torch.equal(plain, moved)


@pytest.mark.parametrize("kind", KINDS)
def test_the_output_says_the_moved_latent(kind):
    generator = torch.Generator().manual_seed(0)
    x, output, change = torch.randn(3, 2, 4, 4, 4, generator=generator, dtype=torch.float64)
    sigma = torch.tensor(0.6, dtype=torch.float64)
    alpha = 1 - sigma if kind == "flow" else (1 - sigma.square()).sqrt()
    before = Prediction(output, kind, x, alpha, sigma)
    assert torch.allclose(before.with_x0_moved(change).x0, before.x0 + change)


def test_a_latent_is_moved_straight_away_from_the_nearest():
    known = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    moved = displacement(torch.tensor([[1.0, 0.0], [5.0, 0.0], [0.0, 0.0]]), known, 0.5)
    assert torch.allclose(moved, torch.tensor([[1.5, 0.0], [0.0, 0.0], [2.5, 0.0]]))


def test_without_pictures_it_says_what_to_name(make_oracle):
    subject = Subject(make_oracle())
    with pytest.raises(UserError, match=r"away from which pictures\? name the training pictures with --references"):
        parse("mitigation", "dissimilarity-guidance").fitted(subject)
    with (
        pytest.raises(UserError, match="knows no training pictures yet"),
        parse("mitigation", "dissimilarity-guidance").applied(subject),
    ):
        pass
