"""What every detector promises, whichever it is."""

from __future__ import annotations

import pytest
import torch

import unmemorize.detect  # noqa: F401  (registers this package's detectors)
from unmemorize.core.registry import detectors
from unmemorize.core.sample import trajectory

every_detector = pytest.mark.parametrize("name", sorted(detectors()))


def scores(name, model, prompts, seeds):
    method = detectors()[name]
    total = max(method.steps, 10)
    steps = []
    for step in trajectory(model, model.encode(prompts), seeds=seeds, steps=total):
        steps.append(step)
        if len(steps) == method.steps:
            break
    return method.score(steps)


def test_there_are_detectors():
    """The contract below is checked against something."""
    assert "noise-gap" in detectors()


@every_detector
def test_a_detector_says_where_it_comes_from(name):
    """It is registered under its own name, cites a paper, and reads at least one step."""
    method = detectors()[name]
    assert method.name == name
    assert method.paper
    assert method.steps >= 1


@every_detector
def test_scores_are_one_finite_float32_per_picture(name, tiny_model):
    """(n,) float32 and finite, for a batch of one and of several."""
    for n in (1, 3):
        found = scores(name, tiny_model, ["a green bicycle", "", "the old harbour"][:n], list(range(n)))
        assert found.shape == (n,)
        assert found.dtype == torch.float32
        assert torch.isfinite(found).all()


@every_detector
def test_scores_repeat_exactly(name, tiny_model):
    """The same prompts and seeds score the same bits, whatever the global random state is."""
    prompts, seeds = ["a green bicycle", "the old harbour"], [3, 4]
    first = scores(name, tiny_model, prompts, seeds)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        assert torch.equal(scores(name, tiny_model, prompts, seeds), first)


@every_detector
def test_a_score_does_not_depend_on_the_rest_of_the_batch(name, tiny_model):
    """A picture scores alone what it scores among others."""
    prompts, seeds = ["a green bicycle", "the old harbour", "an owl on a fence"], [3, 4, 5]
    together = scores(name, tiny_model, prompts, seeds)
    for i in range(3):
        assert scores(name, tiny_model, prompts[i : i + 1], seeds[i : i + 1]).item() == pytest.approx(
            together[i].item(), rel=1e-3
        )


@every_detector
def test_a_memorizer_scores_above_a_model_that_memorizes_nothing(name, oracle, gaussian):
    """Higher is more memorized: a prompt for one training picture beats any prompt of a Gaussian, at every seed."""
    seeds = [0, 1, 2, 3]
    memorized = scores(name, oracle, ["one"] * 4, seeds)
    ordinary = scores(name, gaussian, ["one"] * 4, seeds)
    assert memorized.min() > ordinary.max()
