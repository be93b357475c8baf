"""The text-conditional noise magnitude."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from unmemorize.core.errors import NotApplicable
from unmemorize.core.model import Prediction
from unmemorize.core.sample import Step, first_unconditional, trajectory
from unmemorize.detect.noise import noise_gap, noise_gap_along, noise_gap_at_start

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


def test_the_detector_averages_over_all_steps():
    """Every step counts the same: the score is the mean of the steps' magnitudes, not the last one's."""
    x = torch.zeros(1, 1, 1, 2)
    steps = [Step(i, torch.tensor(0), x, noise([[v, 0]]), noise([[0, 0]]), x) for i, v in enumerate([1.0, 2.0, 9.0])]
    assert noise_gap.score(steps).tolist() == [4.0]
    assert noise_gap.score(steps[:1]).tolist() == [1.0]


def test_without_an_unconditional_prediction_it_does_not_apply(tiny_model):
    """With guidance off it says *not applicable* and why, and gives no score."""
    steps = list(trajectory(tiny_model, tiny_model.encode(PROMPTS[:1]), seeds=[0], steps=2, guidance=1.0))
    with pytest.raises(NotApplicable, match="guidance above 1"):
        noise_gap.score(steps)


def test_scores_do_not_depend_on_the_batch_size(tiny_model):
    """One row at a time and eight at once give the same scores, to 1e-4."""
    empty = first_unconditional(tiny_model, seeds=[0, 1])
    one, eight = (noise_gap_at_start(tiny_model, PROMPTS, empty, seeds=[0, 1], batch=b).scores for b in (1, 8))
    assert torch.allclose(one, eight, rtol=1e-4, atol=0)
    assert (one > 0).all()


def test_scores_do_not_depend_on_the_other_prompts(tiny_model):
    """A prompt scores the same alone, among others, and twice in a list."""
    empty = first_unconditional(tiny_model, seeds=[0, 1])
    alone = noise_gap_at_start(tiny_model, PROMPTS[1:2], empty, seeds=[0, 1]).scores
    among = noise_gap_at_start(tiny_model, [*PROMPTS, PROMPTS[1]], empty, seeds=[0, 1]).scores
    assert torch.allclose(among[1], alone[0], rtol=1e-4, atol=0)
    assert torch.allclose(among[4], alone[0], rtol=1e-4, atol=0)


def test_the_short_cut_equals_a_hand_computation_and_the_detector(tiny_model):
    """The score at the start is the first sampling step's, for every prompt and every seed, in that layout."""
    seeds = [3, 4, 5]
    empty = first_unconditional(tiny_model, seeds=seeds, steps=7)
    found = noise_gap_at_start(tiny_model, PROMPTS, empty, seeds=seeds, steps=7)
    assert found.scores.shape == (4, 3)
    assert found.prompts == tuple(PROMPTS)
    assert found.seeds == tuple(seeds)
    for row, prompt in enumerate(PROMPTS):
        for column, seed in enumerate(seeds):
            step = next(trajectory(tiny_model, tiny_model.encode([prompt]), seeds=[seed], steps=7))
            difference = (step.cond.output - step.uncond.output).flatten().tolist()
            by_hand = math.sqrt(sum(d * d for d in difference))
            assert found.scores[row, column].item() == pytest.approx(by_hand, rel=1e-4)
            assert noise_gap.score([step]).item() == pytest.approx(by_hand, rel=1e-4)


def test_the_short_cut_costs_one_evaluation_per_prompt_and_seed(tiny_model, cost):
    """The unconditional half is paid once, outside; the scores report exactly what they cost."""
    empty = first_unconditional(tiny_model, seeds=[0, 1])
    assert cost.forward == 2
    scores = noise_gap_at_start(tiny_model, PROMPTS, empty, seeds=[0, 1], batch=3)
    assert scores.evaluations == 4 * 2
    assert cost.forward == 4 * 2 + 2


@pytest.mark.parametrize("kind", ["sample", "v_prediction"])
def test_scores_of_one_model_differ_by_the_factor_of_what_it_was_trained_to_predict(make_oracle, kind):
    """‖Δx̂0‖ = (σ/α) ‖Δε‖ = σ ‖Δv‖, at the first step and along sampling."""
    starts, paths = [], []
    for oracle in (make_oracle("epsilon"), make_oracle(kind)):
        empty = first_unconditional(oracle, seeds=[0, 1])
        factor = {"epsilon": empty.sigma / empty.alpha, "sample": 1, "v_prediction": empty.sigma}[oracle.kind]
        scores = noise_gap_at_start(oracle, ["one", "pair", "all"], empty, seeds=[0, 1]).scores
        starts.append(scores.double() * torch.as_tensor(factor).flatten())
        gaps = []
        for step in trajectory(oracle, oracle.encode(["one", "pair"]), seeds=[0, 1], steps=5):
            ratio = {"epsilon": step.cond.sigma / step.cond.alpha, "sample": 1, "v_prediction": step.cond.sigma}
            gaps.append(noise_gap.score([step]).double() * torch.as_tensor(ratio[oracle.kind]).flatten())
        paths.append(torch.stack(gaps))
    assert torch.allclose(*starts, rtol=1e-4, atol=1e-6)
    assert torch.allclose(*paths, rtol=1e-4, atol=1e-6)


def test_scores_are_immutable(oracle):
    """A result cannot be changed after the fact."""
    found = noise_gap_at_start(oracle, ["one"], first_unconditional(oracle, seeds=[0]), seeds=[0])
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.seeds = (1,)


def test_a_window_reads_the_steps_it_names(tiny_model, cost):
    """Norms of a window are those of the sampling path at these steps, whatever the batch, at the stated cost."""
    trace = noise_gap_along(tiny_model, PROMPTS[:2], seeds=[3, 4], steps=5, window=(1, 3), batch=3)
    assert trace.text.shape == trace.uncond.shape == (2, 2, 2)
    assert trace.evaluations == cost.forward == 2 * 2 * 3 * 2  # up to the third step, both halves
    for row, prompt in enumerate(PROMPTS[:2]):
        for column, seed in enumerate([3, 4]):
            steps = list(trajectory(tiny_model, tiny_model.encode([prompt]), seeds=[seed], steps=5))[1:3]
            assert trace.scores[row, column].item() == pytest.approx(noise_gap.score(steps).item(), rel=1e-4)
            norms = [step.uncond.eps.norm().item() for step in steps]
            assert trace.uncond[row, column].tolist() == pytest.approx(norms, rel=1e-4)


def test_a_window_of_one_step_is_the_short_cut(tiny_model):
    """Both ways to the first step's magnitude agree."""
    empty = first_unconditional(tiny_model, seeds=[0, 1], steps=6)
    short = noise_gap_at_start(tiny_model, PROMPTS, empty, seeds=[0, 1], steps=6)
    long = noise_gap_along(tiny_model, PROMPTS, seeds=[0, 1], steps=6, window=(0, 1))
    assert torch.allclose(short.text, long.text, rtol=1e-4)
    assert torch.allclose(short.uncond, long.uncond, rtol=1e-4)


def test_a_window_without_guidance_does_not_apply(tiny_model):
    """There is no unconditional prediction along a path without guidance."""
    with pytest.raises(NotApplicable, match="guidance above 1"):
        noise_gap_along(tiny_model, PROMPTS[:1], seeds=[0], steps=2, window=(0, 2), guidance=1.0)
