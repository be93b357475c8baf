"""Attention entropy beside the probabilities that diffusers' own processor computes, and its limits."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor

from unmemorize.core.errors import NotApplicable
from unmemorize.core.methods import Subject
from unmemorize.core.sample import Sampler, trajectory
from unmemorize.detect.attention_entropy import AttentionEntropy
from unmemorize.models.load import wrap

PROMPTS = ["a green bicycle", "an owl on a fence"]


def kept_attention(model, cond, step):
    """Mean attention to every token, from diffusers' `get_attention_scores` in every cross-attention, (n, tokens)."""
    layers = [m for n, m in model.denoiser.named_modules() if n.endswith("attn2")]
    kept = []
    for layer in layers:
        layer.set_processor(AttnProcessor())
        usual = type(layer).get_attention_scores
        layer.get_attention_scores = lambda *given, layer=layer, usual=usual: (
            kept.append(usual(layer, *given)) or usual(layer, *given)
        )
    with torch.no_grad():
        model.predict(step.scaled, step.t, cond)
    for layer in layers:
        del layer.get_attention_scores
    return torch.stack([part.unflatten(0, (len(cond), -1)).mean(dim=(1, 2)) for part in kept]).mean(dim=0)


def test_it_is_the_entropy_at_the_end_and_what_the_summary_has_gained(make_pipe):
    """Ten steps: the last two are the end, and the summary begins at the end token."""
    model = wrap(make_pipe(), name="tiny")
    result = AttentionEntropy().score(Subject(model, Sampler(10)), model.encode(PROMPTS), seeds=[3, 4])
    cond = model.encode(PROMPTS).repeat(2)
    steps = list(trajectory(model, cond, seeds=[3, 4, 3, 4], sampler=Sampler(10)))
    expected = []
    shares = [kept_attention(model, cond, steps[k]).double() for k in (0, 8, 9)]
    terms = [-a * a.log() for a in shares]
    for row in range(4):
        end = cond.ids[row].tolist().index(model.pipe.tokenizer.eos_token_id)
        ending = (terms[1][row] + terms[2][row]) / 2
        expected.append(float(ending.sum() + ending[end:].sum() - terms[0][row, end:].sum()))
    assert result.by_seed.flatten().tolist() == pytest.approx(expected, rel=1e-4)
    assert (result.columns["entropy"] <= torch.tensor(float(cond.ids.shape[1])).log()).all()


def test_without_attention_or_an_end_it_does_not_apply(oracle):
    with pytest.raises(NotApplicable, match="end token"):
        AttentionEntropy().score(Subject(oracle, Sampler(2)), oracle.encode(["one"]), seeds=[0])
