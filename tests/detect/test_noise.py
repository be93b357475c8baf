"""The text-conditional noise magnitude."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from unmemorize.core.errors import NotApplicable, UserError
from unmemorize.core.methods import Subject
from unmemorize.core.model import Prediction
from unmemorize.core.sample import Sampler, first_unconditional, trajectory
from unmemorize.detect.noise import NoiseGap

PROMPTS = ["a lighthouse at dusk", "an owl on a fence", "the old harbour", "oden, gadget"]


def noise(value, dtype=torch.float32):
    x = torch.as_tensor(value, dtype=dtype).reshape(-1, 1, 1, 2)
    one = torch.ones(1, 1, 1, 1, dtype=dtype)
    return Prediction(x, "epsilon", torch.zeros_like(x), one * 0.6, one * 0.8)


def test_magnitude_is_the_length_of_the_difference_per_picture():
    """Each picture's score is √Σ(difference)² over its own numbers."""
    found = noise([[3, 4], [1, 1], [0, 0]]).gap(noise([[0, 0], [1, 0], [0, 0]]))
    assert found.tolist() == [5, 1, 0]


def test_magnitude_does_not_grow_with_the_batch():
    """Ten copies of a picture in a batch score as one does: there is no norm over the batch."""
    one = noise([[3, 4]]).gap(noise([[0, 0]]))
    ten = noise([[3, 4]] * 10).gap(noise([[0, 0]] * 10))
    assert torch.equal(ten, one.expand(10))


def test_magnitude_of_half_precision_is_computed_in_float32():
    """Large half-precision predictions do not overflow when they are squared."""
    found = noise([[30000.0, 40000.0]], torch.float16).gap(noise([[0.0, 0.0]], torch.float16))
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(50000)


def scores(model, prompts, seeds, steps=None, method=NoiseGap()):
    return method.score(Subject(model, Sampler(steps)), model.encode(prompts), seeds=seeds)


def test_without_an_unconditional_prediction_it_does_not_apply(tiny_model):
    """Along a path without guidance it says *not applicable* and why, and gives no score."""
    subject = Subject(tiny_model, Sampler(2, 1.0))
    with pytest.raises(NotApplicable, match="guidance above 1"):
        NoiseGap(last=2).score(subject, tiny_model.encode(PROMPTS[:1]), seeds=[0])


def test_steps_that_are_not_sampled_are_refused(tiny_model):
    """A window that is none, and one beyond the sampling steps."""
    with pytest.raises(ValueError, match="later last"):
        NoiseGap(first=2, last=2)
    with pytest.raises(UserError, match="2 steps"):
        scores(tiny_model, PROMPTS[:1], [0], 2, NoiseGap(last=3))


def test_scores_do_not_depend_on_the_batch_size(tiny_model, monkeypatch):
    """One row at a time and eight at once give the same scores, to 1e-4."""
    found = []
    for rows in (1, 8):
        monkeypatch.setattr("unmemorize.core.recording.ROWS", rows)
        found.append(scores(tiny_model, PROMPTS, [0, 1]).by_seed)
    assert torch.allclose(*found, rtol=1e-4, atol=0)
    assert (found[0] > 0).all()


def test_scores_do_not_depend_on_the_other_prompts(tiny_model):
    """A prompt scores the same alone, among others, and twice in a list."""
    alone = scores(tiny_model, PROMPTS[1:2], [0, 1]).by_seed
    among = scores(tiny_model, [*PROMPTS, PROMPTS[1]], [0, 1]).by_seed
    assert torch.allclose(among[1], alone[0], rtol=1e-4, atol=0)
    assert torch.allclose(among[4], alone[0], rtol=1e-4, atol=0)


def test_the_short_cut_equals_a_hand_computation(tiny_model):
    """The score at the start is the first sampling step's, for every prompt and every seed, in that layout."""
    seeds = [3, 4, 5]
    found = scores(tiny_model, PROMPTS, seeds, 7)
    assert found.by_seed.shape == (4, 3)
    assert torch.allclose(found.value, found.by_seed.mean(1))
    for row, prompt in enumerate(PROMPTS):
        for column, seed in enumerate(seeds):
            step = next(trajectory(tiny_model, tiny_model.encode([prompt]), seeds=[seed], sampler=Sampler(7)))
            difference = (step.cond.output - step.uncond.output).flatten().tolist()
            by_hand = math.sqrt(sum(d * d for d in difference))
            assert found.by_seed[row, column].item() == pytest.approx(by_hand, rel=1e-4)


def test_the_short_cut_costs_one_evaluation_per_prompt_and_seed(tiny_model, cost):
    """The unconditional half is paid once, for all batches; the scores report exactly what they cost."""
    ready = NoiseGap().ready(Subject(tiny_model), seeds=[0, 1])
    for _ in range(2):
        assert ready(tiny_model.encode(PROMPTS)).evaluations == 4 * 2
    assert cost.forward == 2 * 4 * 2 + 2


@pytest.mark.parametrize("kind", ["sample", "v_prediction"])
def test_scores_of_one_model_differ_by_the_factor_of_what_it_was_trained_to_predict(make_oracle, kind):
    """‖Δx̂0‖ = (σ/α) ‖Δε‖ = σ ‖Δv‖, at the first step and along sampling."""
    starts, paths = [], []
    for oracle in (make_oracle("epsilon"), make_oracle(kind)):
        empty = first_unconditional(oracle, seeds=[0, 1])
        factor = {"epsilon": empty.sigma / empty.alpha, "sample": 1, "v_prediction": empty.sigma}[oracle.kind]
        found = scores(oracle, ["one", "pair", "all"], [0, 1])
        starts.append(found.by_seed.double() * torch.as_tensor(factor).flatten())
        prompts = ["one", "pair"]
        gaps = scores(oracle, prompts, [0, 1], 5, NoiseGap(last=5)).columns["text_norm"].double()
        factors = []
        for step in trajectory(oracle, oracle.encode(["one"]), seeds=[0], sampler=Sampler(5)):
            ratio = {"epsilon": step.cond.sigma / step.cond.alpha, "sample": 1, "v_prediction": step.cond.sigma}
            factors.append(float(ratio[oracle.kind]))
        paths.append(gaps * torch.tensor(factors))
    assert torch.allclose(*starts, rtol=1e-4, atol=1e-6)
    assert torch.allclose(*paths, rtol=1e-4, atol=1e-6)


def test_scores_are_immutable(oracle):
    """A result cannot be changed after the fact."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        scores(oracle, ["one"], [0]).evaluations = 1


def test_a_window_reads_the_steps_it_names(tiny_model, cost, monkeypatch):
    """Norms of a window are those of the sampling path at these steps, whatever the batch, at the stated cost."""
    monkeypatch.setattr("unmemorize.core.recording.PATHS", 3)
    found = scores(tiny_model, PROMPTS[:2], [3, 4], 5, NoiseGap(first=1, last=3))
    gaps, norms = found.columns["text_norm"], found.columns["uncond_norm"]
    assert gaps.shape == norms.shape == (2, 2, 2)
    assert found.evaluations == cost.forward == 2 * 2 * 3 * 2  # up to the third step, both halves
    for row, prompt in enumerate(PROMPTS[:2]):
        for column, seed in enumerate([3, 4]):
            steps = list(trajectory(tiny_model, tiny_model.encode([prompt]), seeds=[seed], sampler=Sampler(5)))[1:3]
            expected = [step.cond.gap(step.uncond).item() for step in steps]
            assert gaps[row, column].tolist() == pytest.approx(expected, rel=1e-4)
            assert found.by_seed[row, column].item() == pytest.approx(sum(expected) / 2, rel=1e-4)
            assert norms[row, column].tolist() == pytest.approx([s.uncond.eps.norm().item() for s in steps], rel=1e-4)


def test_a_window_of_the_first_steps_begins_with_the_short_cut(tiny_model):
    """Both ways to the first step's magnitude agree."""
    short = scores(tiny_model, PROMPTS, [0, 1], 6).columns
    long = scores(tiny_model, PROMPTS, [0, 1], 6, NoiseGap(last=2)).columns
    for name in ("text_norm", "uncond_norm"):
        assert torch.allclose(short[name][..., 0], long[name][..., 0], rtol=1e-4)
