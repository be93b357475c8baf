"""The training filter: which samples stay, and what happens when none does."""

from __future__ import annotations

import torch

from unmemorize.unlearn.training import mean_of_kept, memorized_sample_filter


def test_it_keeps_the_samples_under_the_threshold():
    """Each sample is judged by its own norm; one on the threshold goes."""
    uncond = torch.zeros(3, 1, 1, 2)
    cond = torch.tensor([[0.6, 0.8], [3.0, 4.0], [0.0, 2.0]]).reshape(3, 1, 1, 2)
    assert memorized_sample_filter(cond, uncond).tolist() == [True, False, False]
    assert memorized_sample_filter(cond, uncond, threshold=5.1).tolist() == [True, True, True]


def test_half_precision_does_not_overflow():
    """Norms are in float32."""
    cond = torch.full((1, 4, 64, 64), 300.0, dtype=torch.float16)
    assert memorized_sample_filter(cond, torch.zeros_like(cond), threshold=1e5).tolist() == [True]


def test_it_records_no_gradient_but_the_loss_does():
    """The mask is a decision; the loss of the kept samples alone reaches the weights."""
    weight = torch.ones(2, requires_grad=True)
    cond = (weight * torch.tensor([0.1, 9.0])).reshape(2, 1, 1, 1)
    keep = memorized_sample_filter(cond, torch.zeros(2, 1, 1, 1))
    assert not keep.requires_grad
    mean_of_kept(cond.flatten().square(), keep).backward()
    assert weight.grad[0] != 0
    assert weight.grad[1] == 0


def test_no_kept_sample_is_no_step():
    """There is nothing to step on, not a zero whose optimizer step would still move the weights."""
    assert mean_of_kept(torch.ones(2), torch.tensor([False, False])) is None
    assert mean_of_kept(torch.tensor([1.0, 3.0]), torch.tensor([True, True])) == 2
