"""Maps of where a memory shows: against closed forms, and against the fixed part of planted templates."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from closed_forms import SHAPE, Normals
from unmemorize.core.errors import NotApplicable
from unmemorize.core.maps import end_attention
from unmemorize.core.methods import Subject, parse
from unmemorize.core.results import Regions
from unmemorize.core.sample import Sampler, trajectory
from unmemorize.models.load import load

SAMPLER = Sampler(10, 3.0)
KINDS = ["epsilon", "sample", "v_prediction", "flow"]


class Patch(nn.Module):
    """E[x0 | x] of Gaussians: under a prompt the left half hardly varies, the right half as without one."""

    def __init__(self):
        super().__init__()
        self.mean = torch.zeros(SHAPE, dtype=torch.float64)

    def forward(self, x, alpha, sigma, embeds):
        variance = torch.full((len(x), *SHAPE), 0.6, dtype=torch.float64)
        variance[embeds[:, 0, 0] > 0, :, :, :4] = 0.01
        return alpha * variance / (alpha.square() * variance + sigma.square()) * x


class Patched(Normals):
    """Its embedding is 1 for a prompt and 0 for the empty one."""

    def __init__(self, kind="epsilon"):
        super().__init__(kind=kind)
        self.denoiser = self._closed_form = Patch().double()

    def encode(self, prompts):
        from unmemorize.core.model import Condition

        rows = torch.tensor([[[float(bool(p))]] for p in prompts], dtype=torch.float64)
        return Condition(rows, texts=tuple(prompts))


def last(model, prompt="any", seeds=(0, 1)):
    *_, step = trajectory(model, model.encode([prompt] * len(seeds)), seeds=seeds, sampler=SAMPLER)
    return step


@pytest.mark.parametrize("kind", KINDS)
def test_the_curvature_map_is_the_closed_form(kind):
    """−∂(s_c − s_u)/∂x = 1/(α²v_c + σ²) − 1/(α²v_u + σ²), summed over channels, from one probe: it is diagonal."""
    model = Patched(kind)
    found = parse("explainer", "curvature-map:probes=1").explain(Subject(model, SAMPLER), "any", seeds=[0, 1])
    alpha, sigma = (part.item() for part in model.alpha_sigma(last(model).t))
    left = 3 * (1 / (alpha**2 * 0.01 + sigma**2) - 1 / (alpha**2 * 0.6 + sigma**2))
    expected = torch.zeros(2, 8, 8, dtype=torch.float64)
    expected[:, :, :4] = left
    assert torch.allclose(found.maps, expected, rtol=1e-5, atol=1e-6)
    assert found.above(0.5)[:, :, :4].all()
    assert not found.above(0.5)[:, :, 4:].any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_score_map_is_the_closed_form(kind):
    """Σ (s_c − s_u)² with s = −x / (α²v + σ²), averaged over the last two of ten steps."""
    model = Patched(kind)
    found = parse("explainer", "score-map:last=0.2").explain(Subject(model, SAMPLER), "any", seeds=[0, 1])
    steps = list(trajectory(model, model.encode(["any"] * 2), seeds=[0, 1], sampler=SAMPLER))
    expected = torch.zeros(2, 8, 8, dtype=torch.float64)
    for step in steps[-2:]:
        alpha, sigma = (part.item() for part in model.alpha_sigma(step.t))
        slope = 1 / (alpha**2 * 0.01 + sigma**2) - 1 / (alpha**2 * 0.6 + sigma**2)
        expected[:, :, :4] += (slope * step.x[:, :, :, :4]).square().sum(dim=1) / 2
    assert torch.allclose(found.maps, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(found.latents, steps[-1].x_next)
    assert found.evaluations == 10 * 2 * 2


def test_a_map_without_guidance_is_not_applicable(oracle):
    for name in ("score-map", "curvature-map"):
        with pytest.raises(NotApplicable, match="guidance above 1"):
            parse("explainer", name).explain(Subject(oracle, Sampler(2, 1.0)), "one", seeds=[0])
    with pytest.raises(NotApplicable, match="end token"):
        parse("explainer", "bright-ending").explain(Subject(oracle, SAMPLER), "one", seeds=[0])


def test_bright_ending_is_the_end_token_s_attention(tiny_model):
    """Of the finest layer on the way down, its heads averaged, at the last step, scaled up: written out."""
    prompts = ["a lighthouse at dusk", "an owl on a fence"]
    cond = tiny_model.encode(prompts)
    *_, step = trajectory(tiny_model, cond, seeds=[0, 1], sampler=Sampler(2))
    shown = {}

    def keep(layer, logits):
        shown[layer] = logits
        return logits

    with torch.no_grad(), tiny_model.attending(keep, "down-mid"):
        step.predict(cond)
    finest = [logits for logits in shown.values() if logits.shape[2] == 16]
    assert 0 < len(finest) < len(shown) or len({logits.shape[2] for logits in shown.values()}) == 1
    found = end_attention(step, cond, 8, 8)
    for row in range(2):
        end = cond.ids[row].tolist().index(tiny_model.pipe.tokenizer.eos_token_id)
        maps = torch.stack([logits[row].softmax(-1).mean(0)[:, end].reshape(4, 4) for logits in finest]).mean(0)
        expected = nn.functional.interpolate(maps[None, None], (8, 8), mode="bilinear")[0, 0]
        assert torch.allclose(found[row], expected, atol=1e-6)


def test_what_is_above_a_share_of_the_highest():
    maps = torch.tensor([[[0.0, 1.0], [2.0, 4.0]], [[0.0, 0.0], [1.0, 0.2]]])
    found = Regions("a prompt", torch.zeros(2, 1, 2, 2), maps, 0).above(0.3)
    assert found.tolist() == [[[False, False], [True, True]], [[False, False], [True, False]]]
    assert load is not None
