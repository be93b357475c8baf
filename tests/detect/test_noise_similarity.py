"""NeMo's memorization strength: by hand, beside the localizer's, and where seeds have nothing in common."""

from __future__ import annotations

import pytest

from unmemorize.core.errors import UserError
from unmemorize.core.methods import Subject, parse
from unmemorize.core.sample import Sampler, generators
from unmemorize.detect.noise_similarity import NoiseSimilarity
from unmemorize.metrics.ssim import scales_for, ssim

PROMPT = "an owl on a fence"


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_it_is_the_largest_similarity_to_another_seed(make_oracle, kind):
    """From the closed form's noise, scaled channel by channel, pair by pair."""
    model = make_oracle(kind)
    seeds = [3, 4, 5]
    x = model.noise(generators(seeds))
    alpha, sigma = model.alpha_sigma(model.schedule(50).timesteps[0])
    clean = model.denoiser(x, alpha, sigma, model.encode(["pair"] * 3).embeds)
    difference = (x - alpha * clean) / sigma - x if kind == "epsilon" else -clean
    low, high = (getattr(difference.flatten(2), f"a{end}")(dim=2)[..., None, None] for end in ("min", "max"))
    images = ((difference - low) / (high - low)).float()

    scales = scales_for(8, 8)
    table = [[float(ssim(images[[i]], images[[j]], scales)) for j in range(3)] for i in range(3)]
    expected = [max(table[i][j] for j in range(3) if j != i) for i in range(3)]
    result = NoiseSimilarity().score(Subject(model), model.encode(["pair"]), seeds=seeds)
    assert result.by_seed[0].tolist() == pytest.approx(expected, rel=1e-3)
    assert 0.1 < min(expected) < 0.999


def test_it_is_what_the_localizer_measures(tiny_model):
    """The largest of the localizer's ten seeds is the strength that it reports."""
    found = parse("localizer", "nemo:threshold=0.999,minimum=4.75").find(
        Subject(tiny_model), tiny_model.encode([PROMPT]), ordinary=tiny_model.encode(["a boat", "dusk"])
    )
    scores = NoiseSimilarity().score(Subject(tiny_model, Sampler(50)), tiny_model.encode([PROMPT]), seeds=range(10))
    assert scores.by_seed.max().item() == pytest.approx(found.per_prompt[0].facts["strength"], rel=1e-4)
    assert scores.evaluations == 10


def test_one_seed_is_like_no_other(oracle):
    with pytest.raises(UserError, match="two or more"):
        NoiseSimilarity().score(Subject(oracle), oracle.encode(["one"]), seeds=[0])
