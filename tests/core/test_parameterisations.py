"""One distribution, denoised by four closed forms: what methods measure agrees once each has its known factor."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from unmemorize.attack.dori import Dori
from unmemorize.attack.high_noise import HighNoise
from unmemorize.core.methods import Subject
from unmemorize.core.sample import Sampler, first_unconditional
from unmemorize.detect.noise import NoiseGap
from unmemorize.explain.gradient import Gradient
from unmemorize.mitigate.guard import lower_magnitude
from unmemorize.models.oracle import FiniteSet, OracleModel
from unmemorize.unlearn.denoising import Noise, denoising_errors

KINDS = ["epsilon", "sample", "v_prediction", "flow"]
PROMPTS = {"one": [0], "pair": [1, 2]}
T = 600  # of the variance-preserving schedule


def model_of(kind, **settings):
    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    return OracleModel(FiniteSet(images), PROMPTS, kind=kind, **settings)


def at_level(model):
    """The timestep with the log-SNR of T, the size of x there beside a variance-preserving one's, and Δx̂0 / Δoutput."""
    alpha, sigma = model_of("epsilon").alpha_sigma(torch.tensor(T))
    if model.kind == "flow":
        size = 1 / (alpha + sigma)
        return sigma * size * 1000, size, sigma * size
    factor = {"epsilon": sigma / alpha, "sample": torch.ones_like(sigma), "v_prediction": sigma}[model.kind]
    return torch.tensor(T), torch.ones_like(sigma), factor


def state(seed=3, rows=2):
    """A noisy blend of the pictures at T, in which none has all the weight."""
    model = model_of("epsilon")
    noise = torch.randn(rows, 3, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return model.add_noise(model.denoiser.images[:3].mean(0).expand_as(noise), noise, torch.tensor(T))


def predictions(kind, prompt):
    model = model_of(kind)
    t, size, factor = at_level(model)
    x = state() * size
    cond, empty = model.encode([prompt] * 2), model.unconditional(2)
    return model.predict(x, t.flatten(), cond), model.predict(x, t.flatten(), empty), factor.item()


@pytest.mark.parametrize("kind", KINDS)
def test_the_gap_agrees_up_to_its_factor(kind):
    """‖Δx̂0‖ = (σ/α) ‖Δε‖ = σ ‖Δv‖ at equal log-SNR, x rescaled."""
    cond, empty, factor = predictions(kind, "pair")
    expected = (cond.x0 - empty.x0).flatten(1).norm(dim=1)
    reference, nothing, _ = predictions("sample", "pair")
    assert torch.allclose(cond.gap(empty).double() * factor, expected, rtol=1e-5)
    assert torch.allclose(expected, reference.gap(nothing).double(), rtol=1e-5)
    assert (expected > 0.1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_significance_agrees_up_to_the_same_factor(kind):
    """The gradient of the gap by the embedding."""
    gradients = {}
    for name in ("sample", kind):
        model = model_of(name)
        t, size, factor = at_level(model)
        x = state() * size
        embeds = torch.zeros(2, 1, 6, dtype=torch.float64, requires_grad=True)
        embeds.data[:, 0, 1] = 1.0
        cond = model.encode(["any"] * 2).with_embeds(embeds)
        gap = model.predict(x, t.flatten(), cond).gap(model.predict(x, t.flatten(), model.unconditional(2)))
        gradients[name] = torch.autograd.grad(gap.sum(), embeds)[0] * factor.item()
    assert torch.allclose(gradients[kind], gradients["sample"], rtol=1e-5, atol=1e-7)
    assert gradients[kind].abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_training_errors_agree_up_to_their_factor(kind):
    """The loss of fine-tuning and of the attacks, against the clean latent's error."""
    model = model_of(kind)
    t, _, factor = at_level(model)
    x0 = model.denoiser.images[[0, 4]]
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    prediction = model.predict(model.add_noise(x0, noise, t.flatten()), t.flatten(), model.encode(["pair"] * 2))
    clean = (prediction.x0 - x0).square().mean(dim=(1, 2, 3))
    for errors in (prediction.error(x0, noise), Dori().errors(prediction, x0, noise)):
        assert torch.allclose(errors.double() * factor**2, clean, rtol=1e-5)
    assert torch.allclose(HighNoise().errors(prediction, x0, noise).double(), clean, rtol=1e-5)
    reference = model_of("sample")
    x = reference.add_noise(x0, noise, torch.tensor(T))
    assert torch.allclose(
        clean,
        reference.predict(x, torch.tensor(T), reference.encode(["pair"] * 2)).error(x0, noise).double(),
        rtol=1e-5,
    )
    u = t.flatten().expand(2) / 1000 if kind == "flow" else torch.full((2,), (T + 0.5) / 1000)
    errors = denoising_errors(model, x0, model.encode(["pair"] * 2), Noise(u, noise))
    assert torch.allclose(errors.double() * factor**2, clean, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_output_for_a_picture_is_what_would_say_so(kind):
    """A prediction with that output has the picture as its clean latent."""
    cond, _, _ = predictions(kind, "one")
    picture = model_of(kind).denoiser.images[[4, 5]]
    assert torch.allclose(replace(cond, output=cond.output_for(picture)).x0, picture, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_the_guard_lowers_alike(kind):
    """The updates of AdamW do not see the scale: with a target in its own units each kind takes the same way down."""
    results = {}
    for name in ("sample", kind):
        model = model_of(name)
        t, size, factor = at_level(model)
        x = state() * size
        empty = model.predict(x, t.flatten(), model.unconditional(2))
        start = model.encode(["any"] * 2)
        start.embeds[:, 0, 0] = 3.0

        def magnitude(embeds, model=model, x=x, t=t, start=start, empty=empty):
            # The begin token never moves, and this model has no other: the price of a second one is a constant.
            return model.predict(x, t.flatten(), start.with_embeds(embeds.sum(1, keepdim=True))).gap(empty)

        embeds = torch.cat([torch.zeros_like(start.embeds), start.embeds], dim=1)
        lowered = lower_magnitude(magnitude, embeds, target=0.5 / factor.item(), iterations=4)
        results[name] = lowered.trace * factor.item()
    assert torch.allclose(results[kind], results["sample"], rtol=1e-5)
    assert (results[kind][-1] < results[kind][0]).all()


@pytest.mark.parametrize(
    "model",
    [model_of("v_prediction", zero_terminal_snr=True), model_of("sample", zero_terminal_snr=True), model_of("flow")],
    ids=["v_prediction", "sample", "flow"],
)
def test_the_first_step_says_something_where_there_is_only_noise(model):
    """At α = 0, where ε is x whatever the network said: scores, significance and losses are finite, not zero."""
    assert model.alpha_sigma(model.schedule(10).timesteps[0])[0].item() == 0
    empty = first_unconditional(model, seeds=[0, 1], steps=10)
    subject = Subject(model, Sampler(10))
    scores = NoiseGap().score(subject, model.encode(["one", "any"]), seeds=[0, 1]).by_seed
    assert torch.isfinite(scores).all()
    assert (scores[0] > 1).all()
    assert (scores[1] < 1e-5).all()
    start = model.encode(["pair"])
    start.embeds[:] = torch.tensor([0.0, 1.0, 1.0, -1.0, -1.0, 0.0])
    significance = Gradient().tokens(subject, start, seeds=[0, 1])
    assert torch.isfinite(significance).all()
    assert (significance > 1e-3).all()
    t = model.schedule(10).timesteps[0]
    x0 = model.denoiser.images[:1]
    prediction = model.predict(empty.x[:1], t, start)
    for error in (prediction.error(x0, empty.x[:1]), HighNoise().errors(prediction, x0, empty.x[:1])):
        assert torch.isfinite(error).all()
        assert (error > 1e-3).all()
    attack = HighNoise(updates=40, lowest=0.95).attack(subject, x0, start, seeds=[0])
    assert torch.isfinite(attack.losses).all()
    assert attack.losses[-5:].mean() < attack.losses[:5].mean()
