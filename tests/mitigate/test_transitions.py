"""Guidance held back until a transition: where that is, and what is sampled before and after it."""

from __future__ import annotations

import pytest
import torch

from unmemorize.core.errors import NotApplicable
from unmemorize.core.methods import Subject, parse
from unmemorize.core.sample import Sampler, sample, trajectory
from unmemorize.mitigate.dynamic_transition import DynamicSampler, past_minimum
from unmemorize.mitigate.static_transition import StaticSampler, noise_share
from unmemorize.models.oracle import OracleModel

STEPS, SCALE = 20, 7.5


def drawn(model, mitigation, prompts, seeds, steps=STEPS):
    """Every step of sampling under a mitigation."""
    with parse("mitigation", mitigation).applied(Subject(model, Sampler(steps, SCALE))) as changed:
        return list(trajectory(model, model.encode(prompts), seeds=seeds, sampler=changed.sampler))


def given(model, step):
    """What the scheduler was given at a step, from where it went: DDIM is linear in it."""
    outputs = [model.schedule(STEPS).step(o, step.t, step.x, []) for o in (step.uncond.output, step.cond.output)]
    change = (step.x_next - outputs[0]).flatten(1)
    way = (outputs[1] - outputs[0]).flatten(1)
    return (change * way).sum(1) / way.square().sum(1)


@pytest.mark.parametrize(
    ("mitigation", "before"),
    [("static-transition", 0.0), ("opposite-guidance", -2.0), ("opposite-guidance:scale=1", -1.0)],
)
def test_a_static_transition_has_one_scale_before_and_the_usual_one_after(matched, mitigation, before):
    """One sign until then, at every step; as many steps as asked for; 650 of Stable Diffusion's 1000 timesteps."""
    model = matched("epsilon")
    steps = drawn(model, mitigation, ["pair"], [0])
    assert len(steps) == STEPS
    early = [step for step in steps if step.t > 650]
    assert 0 < len(early) < STEPS
    for step in steps:
        if (step.cond.output - step.uncond.output).abs().max() > 1e-6:
            assert given(model, step).item() == pytest.approx(before if step.t > 650 else SCALE, rel=1e-4)


def test_the_share_of_noise_is_where_the_paper_s_timesteps_are():
    """650 and 900 of 1000, the transitions of Jain et al. and Han et al., lie on the right side of theirs."""
    model = OracleModel(torch.nn.Identity())
    shares = {t: noise_share(model, torch.tensor(t)) for t in (641, 650, 661, 881, 900, 901)}
    assert shares[641] < shares[650] <= 0.7331 < shares[661]
    assert shares[881] < shares[900] <= 0.8931 < shares[901] + 1e-3


@pytest.mark.parametrize(
    ("d", "first"),
    [
        ([3, 2, 4, 1, 5], 2),  # the first of two minima
        ([5, 4, 3, 2, 1], None),  # it only falls
        ([1, 2, 3, 4, 5], None),  # the lowest is the first, which is no local minimum
        ([5, 4, 4, 5, 6], None),  # flat
        ([0, 3, 2, 4, 9], 3),
    ],
)
def test_the_dynamic_transition_is_the_first_local_minimum(d, first):
    """d_{k−2} > d_{k−1} < d_k, and from k on for good."""
    steps = [torch.tensor([float(v)]) for v in d]
    past = [past_minimum(steps[: k + 1]).item() for k in range(len(d))]
    assert past == [first is not None and k >= first for k in range(len(d))]


def test_the_dynamic_transition_reads_the_gaussian_s_magnitude(normals):
    """Each step's ‖Δε‖ is the closed form at where the unguided path stands; each picture has its own transition."""
    model = normals()
    sampler = DynamicSampler(STEPS, SCALE)
    steps = drawn(model, "dynamic-transition", ["any"] * 3, [0, 1, 2])
    for step in steps:
        slope, constant = model.affine(int(step.t))
        sampler.guide(step)
        expected = (slope * step.x + constant).flatten(1).norm(dim=1)
        assert torch.allclose(sampler._magnitudes[-1].double(), expected, rtol=1e-5)
        past = past_minimum(sampler._magnitudes)
        assert torch.allclose(given(model, step), torch.where(past, SCALE, 0.0).double(), atol=1e-6)


def test_pictures_have_transitions_of_their_own(oracle):
    """Some of them pass theirs while others have not, and each alone is what it is among others."""
    prompts, seeds = ["one", "pair", "all", "other"] * 3, list(range(12))
    steps = drawn(oracle, "dynamic-transition", prompts, seeds, steps=50)
    sampler = DynamicSampler(50, SCALE)
    opened = []
    for step in steps:
        sampler.guide(step)
        opened.append(past_minimum(sampler._magnitudes))
    assert torch.stack(opened).any(0).sum() > 0
    for row in (0, 1, 7):
        *_, alone = drawn(oracle, "dynamic-transition", [prompts[row]], [seeds[row]], steps=50)
        assert torch.allclose(alone.x_next[0], steps[-1].x_next[row], atol=1e-9)


def test_two_trajectories_of_one_sampler_do_not_meet(oracle):
    """What one has seen the other has not: neither one after another nor in turns."""
    sampler, cond = DynamicSampler(STEPS, SCALE), oracle.encode(["pair"])
    first = sample(oracle, cond, seeds=[0], sampler=sampler)
    assert torch.equal(sample(oracle, cond, seeds=[0], sampler=sampler), first)
    pairs = zip(*(trajectory(oracle, cond, seeds=[s], sampler=sampler) for s in (0, 1)), strict=True)
    *_, (last, _) = pairs
    assert torch.equal(last.x_next, first)


def test_without_guidance_there_is_none_to_hold_back(oracle):
    for name in ("static-transition", "dynamic-transition", "opposite-guidance", "batch-wise-noise"):
        applied = parse("mitigation", name).applied(Subject(oracle, Sampler(4, 1.0)))
        with pytest.raises(NotApplicable, match="guidance is off"), applied:
            pass
    (step,) = trajectory(oracle, oracle.encode(["one"]), seeds=[0], sampler=Sampler(1, 1.0))
    with pytest.raises(NotApplicable):
        StaticSampler(until=0.0).guide(step)
