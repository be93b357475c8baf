"""Every picture test beside its closed form on Gaussians, in all four parameterisations, and on a memorizer."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
import torch
from PIL import Image

from unmemorize.core.errors import NotApplicable, UserError
from unmemorize.core.methods import Subject, parse
from unmemorize.core.recording import timestep_at
from unmemorize.core.results import Pairs
from unmemorize.core.sample import Sampler, sample
from unmemorize.detect.flipd import Flipd
from unmemorize.detect.loss import Loss
from unmemorize.detect.nearest_generation import NearestGeneration
from unmemorize.detect.one_laplacian import OneLaplacian
from unmemorize.detect.velocity_error import VelocityError
from unmemorize.metrics.complexity import png_sizes
from unmemorize.models.oracle import FiniteSet, Gaussian, OracleModel

KINDS = ["epsilon", "sample", "v_prediction", "flow"]
# A level that the discrete schedule has too, by the ratio of its own α and σ.
EXACT = float(torch.divide(*OracleModel(FiniteSet(torch.zeros(1, 1, 2, 2))).alpha_sigma(torch.tensor(150)))) * (
    1 - 1e-9
)
MIDDLE = float(torch.divide(*OracleModel(FiniteSet(torch.zeros(1, 1, 2, 2))).alpha_sigma(torch.tensor(350)))) * (
    1 - 1e-9
)


def pairs(model, latents):
    return Pairs(latents, model.encode([""] * len(latents)))


@pytest.fixture
def latents():
    return torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64) - 0.5


def level_of(model, ratio):
    return (level.item() for level in model.alpha_sigma(timestep_at(model, ratio)))


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_error_in_the_trained_output_at_all_levels(make_gaussian, latents, kind):
    """With the posterior mean of a Gaussian written out here, one noise a level."""
    model = make_gaussian(kind)
    mean, variance = model.denoiser.mean, model.denoiser.variance
    noises = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(7)).double()
    expected = torch.zeros(3, dtype=torch.float64)
    for u, noise in zip((1 / 8, 3 / 8, 5 / 8, 7 / 8), noises, strict=True):
        alpha, sigma = (float(level) for level in model.alpha_sigma(model.timestep(torch.tensor([u]))))
        x = alpha * latents + sigma * noise
        clean = mean + alpha * variance / (alpha**2 * variance + sigma**2) * (x - alpha * mean)
        clean_error, noise_error = clean - latents, (x - alpha * clean) / sigma - noise
        error = {
            "epsilon": noise_error,
            "sample": clean_error,
            "v_prediction": alpha * noise_error - sigma * clean_error,
            "flow": noise_error - clean_error,
        }[kind]
        expected += error.square().mean(dim=(1, 2, 3)) / 4
    scores = Loss(levels=4).score(Subject(model), pairs(model, latents), seeds=[7])
    assert torch.allclose(scores.by_seed[:, 0].double(), -expected, rtol=1e-4)
    assert scores.evaluations == 4 * 3


@pytest.mark.parametrize("kind", KINDS)
def test_flipd_counts_the_wide_directions_of_a_gaussian(kind):
    """At the mean of a Gaussian with 40 wide directions and the rest narrow, LID is 40; beside it, the closed form."""
    wide = torch.zeros(3, 8, 8, dtype=torch.float64)
    wide.view(-1)[:40] = 1
    mean = torch.full((3, 8, 8), 0.25, dtype=torch.float64)
    model = OracleModel(Gaussian(mean, 1e-8 + 1e4 * wide), kind=kind)
    scores = Flipd(ratio=EXACT).score(Subject(model), pairs(model, mean[None]), seeds=[0])
    assert scores.columns["dimension"].item() == pytest.approx(40, rel=1e-2)
    assert scores.by_seed.item() == -scores.columns["dimension"].item()


@pytest.mark.parametrize("kind", KINDS)
def test_flipd_is_the_growth_of_the_density_with_the_noise(make_gaussian, latents, kind):
    """LID = D + d/d log(σ/α) of log N(z; mean, variance + (σ/α)²), differentiated here, at 1%."""
    model = make_gaussian(kind)
    alpha, sigma = level_of(model, EXACT)
    log_noise = torch.tensor(sigma / alpha, dtype=torch.float64).log().requires_grad_()
    expected = []
    for z in latents:
        variance = model.denoiser.variance + log_noise.exp().square()
        density = -0.5 * ((z - model.denoiser.mean).square() / variance + variance.log()).sum()
        (slope,) = torch.autograd.grad(density, log_noise)
        expected.append(192 + slope.item())
    scores = Flipd(ratio=EXACT).score(Subject(model), pairs(model, latents), seeds=[0, 1])
    for seed in range(2):
        assert scores.columns["dimension"][:, seed].tolist() == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_one_laplacian_of_a_gaussian(make_gaussian, latents, kind):
    """div(s/‖s‖) = tr(J)/‖s‖ − sᵀJs/‖s‖³, J diagonal, at 1%."""
    model = make_gaussian(kind)
    alpha, sigma = level_of(model, EXACT)
    curvature = -1 / (alpha**2 * model.denoiser.variance + sigma**2)
    s = curvature * (alpha * latents - alpha * model.denoiser.mean)
    length = s.flatten(1).norm(dim=1)
    expected = curvature.sum() / length - (curvature * s.square()).flatten(1).sum(1) / length**3
    test = OneLaplacian(ratio=EXACT, probes=400)
    scores = test.score(Subject(model), pairs(model, latents), seeds=[0, 1, 2])
    laplacian = scores.columns["laplacian"].mean(dim=1).double()
    assert torch.allclose(laplacian, expected, rtol=1e-2)
    assert torch.equal(scores.by_seed, -scores.columns["laplacian"])


@pytest.mark.parametrize("kind", KINDS)
def test_the_velocity_error_by_hand(make_gaussian, latents, kind):
    """z − mean of (x̂0 − ε̂) over the seed's own noises, from the closed form of the Gaussian."""
    model = make_gaussian(kind)
    alpha, sigma = level_of(model, 1.0)
    noises = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(7)).double()
    gain = alpha * model.denoiser.variance / (alpha**2 * model.denoiser.variance + sigma**2)
    velocities = []
    for noise in noises:
        x = alpha * latents + sigma * noise
        clean = model.denoiser.mean + gain * (x - alpha * model.denoiser.mean)
        velocities.append(clean - (x - alpha * clean) / sigma)
    expected = (latents - torch.stack(velocities).mean(0)).flatten(1).square().sum(1)
    scores = VelocityError(probes=2).score(Subject(model), pairs(model, latents), seeds=[7])
    assert torch.allclose(scores.columns["error"][:, 0].double(), expected, rtol=1e-3)
    sizes = png_sizes(model.decode(latents))
    assert torch.allclose(scores.by_seed[:, 0], -scores.columns["error"][:, 0] / sizes)


def test_at_equal_signal_and_noise_the_velocity_does_not_depend_on_the_process(make_gaussian, latents):
    """Variance-preserving or a flow: x is rescaled, x̂0 − ε̂ is not; the discrete schedule's level is next to it."""
    results = []
    for kind in ("epsilon", "flow"):
        model = make_gaussian(kind)
        results.append(VelocityError().score(Subject(model), pairs(model, latents), seeds=[0]).columns["error"])
    assert torch.allclose(*results, rtol=1e-2)


@pytest.mark.parametrize("test", [Flipd(ratio=MIDDLE), OneLaplacian(ratio=MIDDLE), VelocityError()])
def test_a_memorized_picture_scores_above_others(oracle, latents, test):
    """The oracle's own pictures against pictures it has not seen, and against what lies between its own."""
    own = oracle.denoiser.images
    between = (own[:3] + own[3:]) / 2
    scores = test.score(Subject(oracle), pairs(oracle, torch.cat([own, 2 * latents, between])), seeds=[0]).by_seed[:, 0]
    assert scores[:6].min() > scores[6:].max()


@pytest.mark.parametrize("name", ["flipd", "one-laplacian", "velocity-error"])
def test_a_score_does_not_depend_on_the_other_pictures(tiny_model, name):
    """Nor on the batch; captions are those of their rows, and the cost is what was evaluated."""
    test, subject = parse("picture-test", f"{name}:probes=2"), Subject(tiny_model)
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    pictures = Pairs(latents, tiny_model.encode(["a green bicycle", "", "an owl on a fence"]))
    with tiny_model.counted() as cost:
        scores = test.score(subject, pictures, seeds=[0, 1])
    assert cost.forward == scores.evaluations == 3 * {"flipd": 1 + 2 * 2, "one-laplacian": 8, "velocity-error": 4}[name]
    for row in range(3):
        alone = test.score(subject, Pairs(latents[[row]], pictures.captions[[row]]), seeds=[0, 1])
        assert torch.allclose(alone.by_seed, scores.by_seed[[row]], rtol=1e-3, atol=1e-4)
    other = test.score(subject, replace(pictures, captions=tiny_model.encode(["", "", ""])), seeds=[0, 1])
    assert not torch.allclose(other.by_seed[0], scores.by_seed[0], rtol=1e-6)
    assert torch.allclose(other.by_seed[1], scores.by_seed[1], rtol=1e-3, atol=1e-4)


def test_the_nearest_generation_is_the_picture_that_was_drawn(tiny_model):
    """A picture that the model drew for its caption is found at that seed, and not under another caption."""
    captions = tiny_model.encode(["a green bicycle", "an owl on a fence"])
    subject = Subject(tiny_model, Sampler(2))
    latents = sample(tiny_model, captions, seeds=[5, 5], sampler=subject.sampler)
    scores = NearestGeneration().score(subject, Pairs(latents, captions), seeds=[4, 5])
    assert scores.by_seed.abs().max() < 1e-5
    assert scores.columns["distance"][:, 0].min() > 1e-3
    assert scores.evaluations == 2 * 2 * 2 * 2
    swapped = NearestGeneration().score(subject, Pairs(latents, captions[[1, 0]]), seeds=[4, 5])
    assert swapped.by_seed.max() < -1e-3
    with pytest.raises(NotApplicable, match="nearest-generation draws from captions"):
        NearestGeneration().score(subject, Pairs(latents, tiny_model.encode(["", "an owl"])), seeds=[4])


def test_a_few_tokens_do_not_depend_on_the_caption_or_on_other_pictures(tiny_model):
    """The search starts from noise and keeps the empty prompt elsewhere; another number of tokens is another score."""
    subject = Subject(tiny_model, Sampler(2))
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    test = parse("picture-test", "few-tokens:tokens=2,updates=2")
    scores = test.score(subject, Pairs(latents, tiny_model.encode(["a green bicycle", ""])), seeds=[0, 1])
    assert scores.evaluations == 2 * 2 * (2 * 8 + 2 * 2)
    alone = test.score(subject, Pairs(latents[[1]], tiny_model.encode(["an owl"])), seeds=[0, 1])
    assert torch.allclose(alone.by_seed, scores.by_seed[[1]], atol=1e-4)
    more = parse("picture-test", "few-tokens:tokens=3,updates=2")
    others = more.score(subject, Pairs(latents, tiny_model.encode(["", ""])), seeds=[0, 1])
    assert not torch.allclose(others.by_seed, scores.by_seed, atol=1e-6)


def test_complexity_is_the_size_of_the_file():
    """As PIL writes it: a flat picture takes less than noise."""
    images = torch.stack([torch.zeros(3, 16, 16), torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))])
    sizes = png_sizes(images)
    for image, size in zip(images, sizes, strict=True):
        file = io.BytesIO()
        Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy()).save(file, format="png")
        assert len(file.getvalue()) == size
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize("text", ["flipd:ratio=0", "one-laplacian:probes=0", "velocity-error:ratio=-1"])
def test_settings_out_of_range_are_refused(text):
    with pytest.raises(UserError, match=r"above 0|greater than or equal to 1"):
        parse("picture-test", text)
