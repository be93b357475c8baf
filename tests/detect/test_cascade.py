"""A cascade: who passes, in which order, and at what cost."""

from __future__ import annotations

import pytest
import torch

from unmemorize.core.methods import Subject, parse
from unmemorize.core.sample import Sampler
from unmemorize.detect.cascade import Cascade, moved

SEEDS = (0, 1)
THINGS = [f"a thing {i}" for i in range(10)]
WORDS = ["a green bicycle", "the old harbour", "an owl on a fence", "oden", "gadget", "two red kites over a field"]


@pytest.fixture
def subject(tiny_model):
    return Subject(tiny_model, Sampler(4))


def score(subject, detector, prompts):
    return detector.score(subject, subject.model.encode(prompts), seeds=SEEDS)


def test_those_that_pass_have_the_order_of_the_dear_detector_and_stand_above_the_others(subject):
    """The bar is the quantile of ordinary prompts' means; below it the order is the screen's."""
    cascade = Cascade("noise-gap", "max-z", share=0.5)
    fitted = cascade.fitted(score(subject, cascade, THINGS))
    gaps = score(subject, parse("detector", "noise-gap"), THINGS + WORDS).value
    assert fitted.fit.bar == pytest.approx(float(gaps[:10].quantile(0.5)), rel=1e-5)
    passes = gaps > fitted.fit.bar
    assert 1 < int(passes.sum()) < 15
    dear = parse("detector", "max-z").fitted(score(subject, parse("detector", "max-z"), THINGS))
    values, others = (score(subject, detector, THINGS + WORDS).value for detector in (fitted, dear))
    assert values[passes].argsort().tolist() == others[passes].argsort().tolist()
    assert torch.allclose(values[~passes], gaps[~passes] - fitted.fit.bar, atol=1e-5)
    assert (values[passes] > 0).all()
    assert (values[~passes] <= 0).all()


def test_only_those_that_pass_cost_what_the_dear_detector_does(subject):
    cascade = Cascade("noise-gap", "max-z", share=0.5)
    ordinary = score(subject, cascade, THINGS)
    assert ordinary.evaluations == 10 * 2 * (1 + 8)
    fitted = cascade.fitted(ordinary)
    passed = int((ordinary.columns["screen"].mean(dim=1) > fitted.fit.bar).sum())
    assert score(subject, fitted, THINGS).evaluations == 10 * 2 + passed * 2 * 8


def test_a_moved_mean_is_positive_and_keeps_the_order():
    """Also where it is far below or above 0, in single precision."""
    means = torch.tensor([-300.0, -1.0, 0.0, 2.0, 1e4])
    spread = torch.tensor([-0.5, 0.5])
    result = moved(means[:, None] + spread).mean(dim=1)
    assert (result > 0).all()
    assert (result.diff() > 0).all()
    assert torch.allclose(result, means + (means.square() + 1).sqrt(), rtol=1e-3, atol=1e-3)
