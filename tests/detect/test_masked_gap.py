"""The masked magnitude beside norms that are computed by hand along a trajectory."""

from __future__ import annotations

import pytest
import torch

from unmemorize.core.errors import NotApplicable
from unmemorize.core.maps import end_attention
from unmemorize.core.methods import Subject, parse
from unmemorize.core.sample import Sampler, trajectory
from unmemorize.detect.masked_gap import MaskedGap

PROMPTS = ["a green bicycle", "an owl on a fence"]
SEEDS = [3, 4]


def walked(model):
    cond = model.encode(PROMPTS).repeat(2)
    return cond, list(trajectory(model, cond, seeds=SEEDS * 2, sampler=Sampler(4)))


def expected(steps, mask):
    """mean_t ‖Δ ∘ m‖ / mean(m), row by row."""
    rows = []
    for row, m in enumerate(mask.double()):
        norms = []
        for step in steps:
            difference = (step.cond.output[row] - step.uncond.output[row]).double()
            norms.append(float((difference * m).square().sum().sqrt() / m.mean()))
        rows.append(sum(norms) / len(norms))
    return rows


@pytest.mark.parametrize("mask", ["bright-ending", "score-map"])
def test_it_is_the_mean_of_the_masked_norms(tiny_model, mask):
    found = MaskedGap(mask=mask).score(Subject(tiny_model, Sampler(4)), tiny_model.encode(PROMPTS), seeds=SEEDS)
    cond, steps = walked(tiny_model)
    last = steps[-1]
    if mask == "bright-ending":
        maps = end_attention(last, cond, *last.x.shape[2:])
    else:
        maps = ((last.cond.eps - last.uncond.eps) / last.cond.sigma).square().sum(dim=1)
    assert found.by_seed.flatten().tolist() == pytest.approx(expected(steps, maps), rel=1e-4)


def test_under_an_even_map_it_is_the_magnitude_of_all_steps(tiny_model, monkeypatch):
    """Whatever the map's height."""
    monkeypatch.setattr(
        "unmemorize.detect.masked_gap.end_attention", lambda step, cond, h, w: torch.full((len(cond), h, w), 7.0)
    )
    subject, cond = Subject(tiny_model, Sampler(4)), tiny_model.encode(PROMPTS)
    plain = parse("detector", "noise-gap:last=4").score(subject, cond, seeds=SEEDS)
    assert torch.allclose(MaskedGap().score(subject, cond, seeds=SEEDS).by_seed, plain.by_seed, rtol=1e-5)


def test_what_it_cannot_do_has_a_reason(oracle, tiny_model):
    with pytest.raises(NotApplicable, match="end token"):
        MaskedGap().score(Subject(oracle, Sampler(2)), oracle.encode(["one"]), seeds=[0])
    with pytest.raises(NotApplicable, match="guidance"):
        MaskedGap().score(Subject(tiny_model, Sampler(2, 1.0)), tiny_model.encode(["one"]), seeds=[0])
