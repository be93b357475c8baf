"""SISS: its weights against plain exponentials and at their limits, and how the two gradients are combined."""

from __future__ import annotations

import math

import pytest
import torch

from unmemorize.core.results import Pairs, Surrogates
from unmemorize.models.load import wrap
from unmemorize.unlearn.finetune import global_norm
from unmemorize.unlearn.loop import Team
from unmemorize.unlearn.siss import Mixture, Siss, against, siss_weights


@pytest.mark.parametrize("lam", [0.1, 0.5, 0.9])
def test_weights_are_the_formula_s(lam):
    """Small latents, where exponentials do not overflow."""
    generator = torch.Generator().manual_seed(0)
    eps_x, eps_a = torch.randn(2, 50, 1, 2, 2, generator=generator, dtype=torch.float64)
    d_x, d_a = (e.square().sum((1, 2, 3)) / 2 for e in (eps_x, eps_a))
    w_x, w_a = siss_weights(eps_x, eps_a, lam)
    assert torch.allclose(w_x, 1 / ((1 - lam) + lam * (d_x - d_a).exp()), rtol=1e-12)
    assert torch.allclose(w_a, 1 / ((1 - lam) * (d_a - d_x).exp() + lam), rtol=1e-12)
    # They are q(m|x) / q(m) and q(m|a) / q(m) for the mixture q: its shares add up to one.
    assert torch.allclose((1 - lam) * w_x + lam * w_a, torch.ones_like(w_x), rtol=1e-12)


def test_weights_at_latents_of_stable_diffusion_s_size_are_finite():
    """16,384 values: the ratio is 0 or infinite in any float, the weights are 1/(1−λ) and 0, or 0 and 1/λ."""
    near, far = torch.zeros(1, 4, 64, 64), torch.full((1, 4, 64, 64), 3.0)
    assert [w.item() for w in siss_weights(near, far, 0.25)] == pytest.approx([1 / 0.75, 0.0])
    assert [w.item() for w in siss_weights(far, near, 0.25)] == pytest.approx([0.0, 4.0])
    assert [w.item() for w in siss_weights(far, far, 0.25)] == pytest.approx([1.0, 1.0])


def test_the_mixture_makes_the_two_losses_unbiased():
    """Importance sampling: the weighted mean over the mixture is the mean over the kept sample's own draws."""
    generator = torch.Generator().manual_seed(0)
    n, alpha, sigma, x, a = 200_000, 0.6, 0.8, 0.3, -0.5
    source = torch.where(torch.rand(n, generator=generator) < 0.5, a, x).double()
    m = alpha * source + sigma * torch.randn(n, generator=generator).double()
    eps_x, eps_a = ((m - alpha * s) / sigma for s in (x, a))
    w_x, w_a = siss_weights(eps_x[:, None, None, None], eps_a[:, None, None, None], 0.5)
    for weight, sample in ((w_x, x), (w_a, a)):
        assert (weight * m).mean().item() == pytest.approx(alpha * sample, abs=0.01)
        assert (weight * (m - alpha * sample) ** 2).mean().item() == pytest.approx(sigma**2, rel=0.02)


def test_the_forgetting_gradient_has_its_share_of_the_norm():
    """Whatever its own norm; and it is subtracted."""
    keep, forget = [torch.tensor([3.0]), torch.tensor([[4.0]])], [torch.tensor([0.0]), torch.tensor([[1e-3]])]
    combined = against(keep, forget, 0.1)
    assert combined[0].item() == pytest.approx(3.0)
    assert combined[1].item() == pytest.approx(4.0 - 0.5)
    assert all(math.isfinite(t.item()) for t in against(keep, [torch.zeros(1), torch.zeros(1, 1)], 0.1))


def test_backward_leaves_the_combination_of_both_gradients(make_pipe):
    """Against the two losses differentiated one by one."""
    model = wrap(make_pipe())
    generator = torch.Generator().manual_seed(0)
    latents, captions = torch.randn(2, 4, 8, 8, generator=generator), model.encode(["one", "two"])
    kept = Surrogates(torch.randn(4, 4, 8, 8, generator=generator), torch.tensor([0, 0, 1, 1]))
    objective, team = Mixture(Pairs(latents, captions), kept, batch=4), Team()
    parameters = list(model.denoiser.parameters())
    with model.counted() as cost:
        shown = objective.backward(model, 3, team)
    assert cost.forward == cost.backward == 4
    separate = [
        torch.autograd.grad(objective.losses(model, 3, team)[i], parameters, retain_graph=True) for i in range(2)
    ]
    scale = 0.1 * global_norm(separate[0]) / global_norm(separate[1])
    for p, x, a in zip(parameters, *separate, strict=True):
        assert torch.allclose(p.grad, x - scale * a, atol=1e-6)
    assert shown["keep"] > 0
    assert shown["forget"] > 0


@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_the_ends_of_the_mixture_are_refused(lam):
    with pytest.raises(ValueError, match="unbounded"):
        Siss(lam=lam)
