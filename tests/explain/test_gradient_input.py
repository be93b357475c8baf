"""Gradient × input: against finite differences of scaled token inputs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from unmemorize.core.errors import NotApplicable
from unmemorize.core.methods import Subject
from unmemorize.core.sample import Sampler, first_unconditional
from unmemorize.explain.gradient_input import GradientInput

PROMPT = "a lighthouse at dusk"


def test_it_is_how_the_magnitude_changes_as_a_token_input_is_scaled(tiny_model):
    """⟨x, ∂L/∂x⟩ of a token is the derivative of the magnitude by a factor on its input, mean over seeds."""
    tiny_model.denoiser.double()
    tiny_model.pipe.text_encoder.double()
    try:
        cond = tiny_model.encode([PROMPT])
        empty = first_unconditional(tiny_model, seeds=[0, 1])
        t = tiny_model.schedule(50).timesteps[0]
        rows = torch.zeros(2, dtype=torch.long)

        def value(token, factor):
            inputs = tiny_model.token_table[cond.ids].clone()
            inputs[0, token] *= factor
            with torch.no_grad():
                cond_eps = tiny_model.predict(empty.x, t, tiny_model.encode_tokens(cond.ids, inputs)[rows]).eps
            # in float64 throughout: the package's norm is in float32, too coarse to difference
            return (cond_eps - empty.eps).flatten(1).norm(dim=1).mean().item()

        tokens = GradientInput().tokens(Subject(tiny_model), PROMPT, seeds=[0, 1])
        for token in (0, 1, 3, 20):
            slope = (value(token, 1 + 1e-5) - value(token, 1 - 1e-5)) / 2e-5
            assert tokens[token].item() == pytest.approx(slope, rel=1e-3, abs=1e-8)
        assert (tokens < 0).any()
        assert (tokens > 0).any()
    finally:
        tiny_model.denoiser.float()
        tiny_model.pipe.text_encoder.float()


def test_words_begin_end_and_padding_add_up_and_cost_two_evaluations_a_seed(tiny_model, cost):
    """What a prompt's tokens have is handed out once; the cost is that of the significance."""
    explanation = GradientInput().explain(Subject(tiny_model), PROMPT, seeds=[0, 1])
    assert cost.forward == explanation.evaluations == 4
    total = GradientInput().tokens(Subject(tiny_model), PROMPT, seeds=[0, 1]).sum().item()
    assert sum(explanation.significance) + sum(explanation.special.values()) == pytest.approx(total, rel=1e-3)
    assert all(p.grad is None for p in tiny_model.denoiser.parameters())
    assert all(p.grad is None for p in tiny_model.pipe.text_encoder.parameters())


def test_a_window_averages_over_its_steps(tiny_model):
    """Steps 0 to 2 weigh the same."""
    subject = Subject(tiny_model, Sampler(5))
    whole = GradientInput(last=2).tokens(subject, PROMPT, seeds=[0])
    parts = [GradientInput(first=k, last=k + 1).tokens(subject, PROMPT, seeds=[0]) for k in (0, 1)]
    assert torch.allclose(whole, torch.stack(parts).mean(0), rtol=1e-3, atol=1e-6)


def test_a_model_without_token_ids_is_not_applicable(tiny_model, monkeypatch):
    """Embeddings alone have no token inputs."""
    encode = tiny_model.encode
    monkeypatch.setattr(tiny_model, "encode", lambda prompts: replace(encode(prompts), ids=None))
    with pytest.raises(NotApplicable, match="no token ids"):
        GradientInput().tokens(Subject(tiny_model), PROMPT, seeds=[0])
