"""The closed-form models are exact, and sampling from them ends where it must."""

from __future__ import annotations

import math

import pytest
import torch

from unmemorize.core.methods import Subject
from unmemorize.core.model import Condition
from unmemorize.core.sample import Sampler, trajectory
from unmemorize.detect.noise import NoiseGap

KINDS = ["epsilon", "sample", "v_prediction"]
SEEDS = [0, 1, 2, 3]


def states(count=5):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def levels(model, t):
    alpha = model._scheduler.alphas_cumprod[t].double().item()
    return math.sqrt(alpha), math.sqrt(1 - alpha)


def mixture_log_density(x, images, prior, alpha, sigma):
    """log p(x) of one state, up to a constant, term by term."""
    terms = [
        math.log(p)
        - sum((a - alpha * b) ** 2 for a, b in zip(x.flatten().tolist(), image.flatten().tolist(), strict=True))
        / (2 * sigma**2)
        for image, p in zip(images, prior, strict=True)
        if p > 0
    ]
    top = max(terms)
    return top + math.log(sum(math.exp(t - top) for t in terms)), terms, top


@pytest.mark.parametrize("t", [50, 400, 981])
@pytest.mark.parametrize("prompt", ["one", "pair", "all", "a prompt it was never given"])
def test_posterior_mean_is_bayes_rule(oracle, prompt, t):
    """E[x0 | x] is the average of the prompt's pictures, weighted by Bayes' rule written out."""
    members = {"one": [0], "pair": [1, 2]}.get(prompt, range(6))
    images = oracle.denoiser.images
    prior = [float(i in members) / len(members) for i in range(6)]
    alpha, sigma = levels(oracle, t)
    # States near a blend of the pictures, where no single one has all the weight.
    x = alpha * images[:4].mean(0) + sigma * states(3)
    found = oracle.predict(x, torch.tensor(t), oracle.encode([prompt] * 3)).x0
    kept = [image for image, p in zip(images, prior, strict=True) if p]
    for row in range(3):
        _, terms, top = mixture_log_density(x[row], images, prior, alpha, sigma)
        weights = [math.exp(v - top) for v in terms]
        mean = sum(w * image for w, image in zip(weights, kept, strict=True)) / sum(weights)
        assert torch.allclose(found[row], mean, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_score_is_the_slope_of_the_log_density(make_oracle, kind):
    """The score is the finite difference of log p(x), in every parameterisation, along random directions."""
    oracle = make_oracle(kind)
    alpha, sigma = levels(oracle, 600)
    x = (alpha * oracle.denoiser.images.mean(0) + sigma * states(1)[0]).requires_grad_(False)
    score = oracle.predict(x[None], torch.tensor(600), oracle.encode(["all"])).score[0]
    for direction in states(3):
        h = 1e-4
        up, down = (
            mixture_log_density(x + s * h * direction, oracle.denoiser.images, [1 / 6] * 6, alpha, sigma)[0]
            for s in (1, -1)
        )
        assert (score * direction).sum().item() == pytest.approx((up - down) / (2 * h), rel=1e-5)


@pytest.mark.parametrize("t", [0, 500, 999])
@pytest.mark.parametrize("kind", KINDS)
def test_gaussian_score_is_exact(make_gaussian, kind, t):
    """For x0 ~ N(μ, v) the score is −(x − αμ) / (α²v + σ²), whatever the model predicts (a v model's sign included)."""
    model = make_gaussian(kind)
    alpha, sigma = levels(model, t)
    x = states()
    expected = -(x - alpha * model.denoiser.mean) / (alpha**2 * model.denoiser.variance + sigma**2)
    found = model.predict(x, torch.tensor(t), model.encode(["any"] * 5)).score
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("prompt", "index"), [("one", 0), ("other", 3)])
def test_sampling_a_memorized_picture_lands_on_it(make_oracle, kind, prompt, index):
    """Fifty DDIM steps from any noise end at the one picture the prompt stands for, and at no other."""
    oracle = make_oracle(kind)
    image = oracle.denoiser.images[index]
    *_, last = trajectory(oracle, oracle.encode([prompt] * 4), seeds=SEEDS, sampler=Sampler(50, 1.0))
    assert torch.allclose(last.cond.x0, image.expand(4, 3, 8, 8), atol=1e-9)
    pixels = (oracle.decode(last.x_next) - (image / 2 + 0.5)).square().mean((1, 2, 3)).sqrt()
    assert pixels.max() < 0.03
    others = [(oracle.decode(last.x_next) - oracle.decode(o)).square().mean().sqrt() for o in oracle.denoiser.images]
    assert min(range(6), key=others.__getitem__) == index


def test_sampling_without_a_memorized_prompt_ends_at_different_pictures(oracle):
    """A prompt for the whole set gives one of its pictures each time, but not always the same."""
    *_, last = trajectory(oracle, oracle.encode(["all"] * 8), seeds=range(8), sampler=Sampler(50, 1.0))
    distances = torch.cdist(last.x_next.flatten(1), oracle.denoiser.images.flatten(1)) / math.sqrt(192)
    assert distances.min(1).values.max() < 0.05
    assert len(set(distances.argmin(1).tolist())) > 1


def test_the_noise_gap_ranks_fewer_pictures_above_more(oracle):
    """The detector puts one-picture prompts above a two-picture one, and a prompt for everything at zero."""
    values = NoiseGap().score(Subject(oracle), oracle.encode(["one", "other", "pair", "all"]), seeds=SEEDS).value
    assert min(values[0], values[1]) > values[2] > values[3]
    assert values[3] == pytest.approx(0, abs=1e-6)


def test_the_noise_gap_of_a_gaussian_is_zero(gaussian):
    """A model that reads no prompt has nothing to detect."""
    values = NoiseGap().score(Subject(gaussian), gaussian.encode(["one", "anything"]), seeds=SEEDS).by_seed
    assert values.abs().max() < 1e-6


def test_noise_and_pictures_round_trip(oracle):
    """`add_noise` is α·x0 + σ·ε per row, and `invert` undoes `decode` within the range of pictures."""
    x0, noise = oracle.denoiser.images[:2], states(2)
    t = torch.tensor([100, 900])
    expected = oracle._scheduler.add_noise(x0, noise, t)
    assert torch.allclose(oracle.add_noise(x0, noise, t), expected, atol=1e-6)
    assert torch.allclose(oracle.invert(oracle.decode(x0)), x0)


def test_every_row_is_one_evaluation(oracle):
    """The oracle counts rows as the adapters do."""
    with oracle.counted() as cost:
        list(trajectory(oracle, oracle.encode(["one", "all"]), seeds=[0, 1], sampler=Sampler(5)))
        assert cost.forward == 5 * 2 * 2
        oracle.predict(states(3), torch.tensor(5), Condition(oracle.encode(["one"]).embeds.expand(3, -1, -1)))
    assert cost.forward == 23
