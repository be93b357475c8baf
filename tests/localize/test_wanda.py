"""Wanda's masks are those of its formula."""

from __future__ import annotations

import pytest
import torch

from unmemorize.core.errors import NotApplicable, UserError
from unmemorize.core.hooks import observed
from unmemorize.core.methods import Subject
from unmemorize.core.sample import Sampler, trajectory
from unmemorize.localize.wanda import Wanda, choose

PROMPTS = ["an owl on a fence", "the old harbour"]


def test_the_top_of_each_row_that_matters_more_than_usual():
    """By hand: norms 2 1 1 3 of the target and 1 1 2 4 of the base, half of each row; then two steps joined."""
    weights = {"ff": torch.tensor([[1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]])}
    target, usual = torch.tensor([[4.0, 1.0, 1.0, 9.0]]), torch.tensor([[1.0, 1.0, 4.0, 16.0]])
    found = choose(weights, {"ff": target}, {"ff": usual}, 0.5)["ff"]
    assert found.tolist() == [[False] * 4, [True, False, False, False]]
    steps = torch.cat([target, torch.tensor([[0.0, 0.0, 16.0, 0.0]])])
    joined = choose(weights, {"ff": steps}, {"ff": usual.repeat(2, 1) / 2}, 0.25)["ff"]
    assert joined.tolist() == [[False, False, True, True], [True, False, True, False]]


def wanda(model, prompts, **settings):
    return Wanda(**settings).find(Subject(model), model.encode(prompts))


def squares(model, prompt):
    """Squared input norms by layer and step, as the formula says, of one prompt."""
    layers = model.feed_forwards()
    calls = {name: [] for name in layers}
    with observed(model.denoiser, {name: calls[name].append for name in layers}):
        for step in trajectory(model, model.encode([prompt]), seeds=[0], sampler=Sampler(50, 7.5)):
            if step.index == 9:
                break
    unit = {name: [a / a.norm(dim=-1, keepdim=True) for a in given] for name, given in calls.items()}
    return {name: [a.double().square().sum((0, 1)) for a in given] for name, given in unit.items()}


def expected_masks(model, prompts, sparsity):
    """The formula with plain loops."""
    found, base = [squares(model, prompt) for prompt in prompts], squares(model, "")
    masks = {}
    for name, layer in model.feed_forwards().items():
        w = layer.weight.detach().abs()
        masks[name] = torch.zeros_like(w, dtype=torch.bool)
        for tau in range(10):
            s = w * sum(f[name][tau] for f in found).sqrt()
            b = w * (len(prompts) * base[name][tau]).sqrt()
            for i in range(len(w)):
                for j in s[i].argsort(descending=True)[: int(sparsity * w.shape[1])]:
                    masks[name][i, j] |= s[i, j] > b[i, j]
    return {name: mask for name, mask in masks.items() if mask.any()}


def test_masks_follow_the_formula_at_any_batch_size(tiny_model, cost):
    """The mask of a set of prompts equals plain loops', however many prompts share a batch."""
    expected = expected_masks(tiny_model, PROMPTS, 0.05)
    for batch in (1, 16):
        found = wanda(tiny_model, PROMPTS, sparsity=0.05, batch=batch)
        assert found.masks.keys() == expected.keys()
        assert all(torch.equal(mask, expected[name]) for name, mask in found.masks.items())
        assert found.evaluations == 3 * 2 * 10
    assert found.units == "weights"


def test_prompt_by_prompt(tiny_model):
    """Each prompt's mask is that of the prompt alone, and the result joins them."""
    found = wanda(tiny_model, PROMPTS, sparsity=0.05, per_prompt=True)
    alone = wanda(tiny_model, PROMPTS[1:], sparsity=0.05).masks
    assert all(torch.equal(found.per_prompt[1].masks[name], mask) for name, mask in alone.items())
    for name, mask in found.masks.items():
        assert torch.equal(mask, torch.stack([prompt.masks[name] for prompt in found.per_prompt]).any(0))


def test_the_empty_prompt_stands_out_from_nothing(tiny_model):
    """Against itself no score is higher."""
    assert wanda(tiny_model, [""], sparsity=0.1).selected == 0


def test_what_cannot_be_done_is_refused(tiny_model, planted, oracle):
    """A share that is none, rows too short for it, a model without feed-forwards."""
    for sparsity in (0, -1, 1.5, 1e-6, float("nan")):
        with pytest.raises(UserError, match="sparsity"):
            wanda(tiny_model, PROMPTS, sparsity=sparsity)
    for model in (planted, oracle):
        with pytest.raises(NotApplicable, match="feed-forward"):
            wanda(model, PROMPTS)
