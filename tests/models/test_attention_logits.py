"""Logits of cross-attention: left alone they change nothing, and they are those that the layers compute."""

from __future__ import annotations

import math

import pytest
import torch

from pipelines import tiny
from unmemorize.core.errors import NotApplicable
from unmemorize.core.hooks import observed
from unmemorize.core.sample import generators
from unmemorize.models.load import wrap

PROMPTS = ["a lighthouse at dusk", "an owl on a fence"]


def state(model, rows=2):
    return model.noise(generators(range(rows))), model.schedule(4).timesteps[1]


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_unchanged_logits_predict_what_is_predicted_without(family):
    """And afterwards, also after an error, the layers compute as before."""
    model = wrap(tiny(family), size=(64, 64))
    cond, (x, t) = model.encode(PROMPTS), state(model)
    processors = [m.processor for m in model.denoiser.modules() if hasattr(m, "get_attention_scores")]
    with torch.no_grad():
        plain = model.predict(x, t, cond).output
        with model.attending(lambda layer, logits: logits):
            assert torch.allclose(model.predict(x, t, cond).output, plain, atol=1e-5)
        with model.attending(lambda layer, logits: logits * 0.5):
            assert not torch.allclose(model.predict(x, t, cond).output, plain, atol=1e-3)
        with pytest.raises(RuntimeError, match="on purpose"), model.attending(lambda layer, logits: logits):
            raise RuntimeError("on purpose")
        assert torch.equal(model.predict(x, t, cond).output, plain)
    after = [m.processor for m in model.denoiser.modules() if hasattr(m, "get_attention_scores")]
    assert all(a is b for a, b in zip(processors, after, strict=True))


def test_logits_are_queries_times_keys(tiny_model):
    """Of each layer, head by head, against its own projections of its own inputs; rows are in the order of the call."""
    cond, (x, t) = tiny_model.encode(PROMPTS), state(tiny_model)
    shown, given = {}, {}

    def keep(layer, logits):
        shown[layer] = logits
        return logits

    layers = [name.removesuffix(".to_v") for name in tiny_model.text_projections("all")]
    watchers = {f"{n}.to_q": lambda value, n=n: given.__setitem__(n, value) for n in layers}
    with torch.no_grad(), tiny_model.attending(keep), observed(tiny_model.denoiser, watchers):
        tiny_model.predict(x, t, cond)
    assert list(shown) == layers
    for name in layers:
        layer = tiny_model.denoiser.get_submodule(name)
        q, k = (p.unflatten(2, (layer.heads, -1)) for p in (layer.to_q(given[name]), layer.to_k(cond.embeds)))
        expected = torch.einsum("nqhd,nkhd->nhqk", q, k) / math.sqrt(q.shape[-1])
        assert torch.allclose(shown[name], expected, atol=1e-5)


def test_the_way_up_is_left_out_where_asked(tiny_model):
    cond, (x, t) = tiny_model.encode(PROMPTS), state(tiny_model)
    shown = []

    def keep(layer, logits):
        shown.append(layer)
        return logits

    with torch.no_grad(), tiny_model.attending(keep, "down-mid"):
        tiny_model.predict(x, t, cond)
    assert shown
    assert not any(name.startswith("up") for name in shown)


def test_others_give_none(oracle):
    """A closed form, a family without an adapter for it, and a UNet that somebody else computes."""
    model = wrap(tiny("sd"), size=(64, 64))
    layer = next(m for n, m in model.denoiser.named_modules() if n.endswith("attn2"))
    layer.processor = lambda *a, **k: None
    for other in (oracle, wrap(tiny("sd3"), size=(64, 64)), model):
        with pytest.raises(NotApplicable):
            other.attending(lambda name, logits: logits)
