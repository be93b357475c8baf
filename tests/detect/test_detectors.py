"""Every detector beside its definition: on Gaussians, where it has a closed form, and on a memorizer of pictures.

Each of the traps that public implementations fell into is a test here or in the contract of all methods.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch.func import jvp

from unmemorize.core.errors import NotApplicable, UserError
from unmemorize.core.methods import Subject, parse, score_each
from unmemorize.core.recording import Recorder, timestep_at
from unmemorize.core.sample import Sampler, generators
from unmemorize.detect.anisotropy import Anisotropy
from unmemorize.detect.condition_jacobian import ConditionJacobian, blended
from unmemorize.detect.dcs import Dcs
from unmemorize.detect.dsm import Dsm
from unmemorize.detect.max_z import MaxZ
from unmemorize.detect.metric_2 import Metric2
from unmemorize.detect.mid_noise import MidNoise
from unmemorize.detect.noise import NoiseGap
from unmemorize.detect.seed_agreement import SeedAgreement
from unmemorize.detect.sharpness import Sharpness
from unmemorize.detect.stability import Stability
from unmemorize.detect.two_probe import TwoProbe
from unmemorize.models.oracle import FiniteSet, Gaussian, OracleModel

KINDS = ["epsilon", "sample", "v_prediction", "flow"]
SEEDS = (3, 4, 5)
PROMPTS = ["one", "pair"]


class TwoGaussians(Gaussian):
    """One Gaussian without a prompt, a narrow one with it; between the two embeddings, the way bends at `power` > 1."""

    power = 1.0

    def __init__(self):
        generator = torch.Generator().manual_seed(2)
        draw = lambda: torch.rand(3, 8, 8, generator=generator, dtype=torch.float64)  # noqa: E731
        super().__init__(draw() - 0.5, draw() + 0.5)
        self.narrow = Gaussian(draw() - 0.5, 0.1 * draw() + 0.05)

    def forward(self, x, alpha, sigma, embeds):
        share = embeds.reshape(-1, 1, 1, 1) ** self.power
        return (1 - share) * super().forward(x, alpha, sigma, embeds) + share * self.narrow(x, alpha, sigma, embeds)


class GaussianPrompts(OracleModel):
    """Any prompt stands for the narrow Gaussian: an embedding of 1."""

    def encode(self, prompts):
        cond = super().encode(prompts)
        return cond.with_embeds(torch.tensor([[[float(bool(text))]] for text in prompts], dtype=torch.float64))


@pytest.fixture
def gaussians():
    return GaussianPrompts(TwoGaussians())


class AtLevel(OracleModel):
    """A memorizer of pictures whose first step has the log-SNR of Stable Diffusion's, also as a flow."""

    def __init__(self, kind):
        images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5
        super().__init__(FiniteSet(images / 4), {"one": [0], "pair": [1, 2]}, kind=kind)

    def encode(self, prompts):
        """A log prior that a small change of it changes."""
        cond = super().encode(prompts)
        return cond.with_embeds(cond.embeds.clamp(min=-2.0))

    def schedule(self, steps):
        if self.kind != "flow":
            return super().schedule(steps)
        alpha, sigma = AtLevel("epsilon").alpha_sigma(AtLevel("epsilon").schedule(steps).timesteps[0])
        t = (1000 * sigma / (alpha + sigma)).flatten()
        return SimpleNamespace(
            timesteps=t, initial_scale=float(1 / (alpha + sigma)), scale=lambda x, t: x, step=lambda *_: None
        )


def factors(model, ratio=None):
    """The size of x beside a variance-preserving one's, and Δx̂0 / Δoutput, at the first step or at a level."""
    t = model.schedule(50).timesteps[0] if ratio is None else timestep_at(model, ratio)
    alpha, sigma = (level.item() for level in model.alpha_sigma(t))
    factor = {"epsilon": sigma / max(alpha, 1e-9), "sample": 1.0, "v_prediction": sigma, "flow": sigma}[model.kind]
    return math.hypot(alpha, sigma), factor


@pytest.mark.parametrize("method", ["sharpness", "condition-jacobian"])
@pytest.mark.parametrize("step", ["1e-300", "5e-324", "1e-7", "0", "2"])
def test_a_step_that_rounding_swallows_is_refused(method, step):
    """Or the score would be not finite, for which the model's precision would be blamed."""
    with pytest.raises(UserError, match=f"{method}: step=.*: name a share from 1e-06 to 1"):
        parse("detector", f"{method}:step={step}")


def scored(model, detector, prompts=PROMPTS, seeds=SEEDS, steps=None):
    return detector.score(Subject(model, Sampler(steps)), model.encode(prompts), seeds=seeds)


def at_start(model, seeds=SEEDS):
    """x, α and σ of the first step."""
    x = model.noise(generators(seeds))
    return x, *model.alpha_sigma(model.schedule(50).timesteps[0])


# One distribution in four parameterisations. LEVEL is one that the discrete schedule has, too.
LEVEL = float(torch.divide(*OracleModel(FiniteSet(torch.zeros(1, 1, 2, 2))).alpha_sigma(torch.tensor(450)))) * (
    1 - 1e-9
)
UNITS = {
    NoiseGap(): lambda model: factors(model)[1],
    SeedAgreement(): lambda model: 1,
    MidNoise(ratio=LEVEL): lambda model: factors(model, LEVEL)[1],
    Sharpness(): lambda model: factors(model)[1] ** 2 * factors(model)[0],
    ConditionJacobian(): lambda model: factors(model)[1],
    Dcs(): lambda model: 1,
    Metric2(): lambda model: factors(model)[0] ** 2,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("detector", UNITS, ids=lambda detector: detector.name)
def test_every_parameterisation_scores_alike(detector, kind):
    """Up to the known factor, at equal log-SNR, x rescaled: a velocity is not taken for a clean latent."""
    reference, model = AtLevel("sample"), AtLevel(kind)
    expected = scored(reference, detector).by_seed.double() * UNITS[detector](reference)
    assert torch.allclose(scored(model, detector).by_seed.double() * UNITS[detector](model), expected, rtol=1e-4)
    assert (expected.abs() > 1e-6).all()


@pytest.mark.parametrize("kind", KINDS[:3])
@pytest.mark.parametrize("detector", [Dsm(), Stability(), Anisotropy()], ids=lambda detector: detector.name)
def test_along_sampling_every_parameterisation_scores_alike(make_oracle, detector, kind):
    """Of one path, which a flow model does not take; at low noise a cosine has no unit."""
    expected = scored(make_oracle("sample"), detector, steps=6).by_seed
    assert torch.allclose(scored(make_oracle(kind), detector, steps=6).by_seed, expected, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_standardized_has_no_unit(kind):
    """Fitted on the same prompts, the two probes give the same numbers in every parameterisation."""
    results = []
    for name in ("sample", kind):
        model, detector = AtLevel(name), TwoProbe(ratio=LEVEL)
        fitted = detector.fitted(scored(model, detector, ["pair", "any", "one"], range(8)))
        results.append(scored(model, fitted).by_seed)
    assert torch.allclose(*results, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("zero_terminal", [False, True])
def test_at_a_first_step_of_noise_alone_the_predicted_noise_says_nothing(zero_terminal):
    """Flow models, and schedules that end in pure noise: what reads ε says that it does not apply; the others score."""
    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 8
    kind = "v_prediction" if zero_terminal else "flow"
    model = OracleModel(FiniteSet(images), {"one": [0]}, kind=kind, zero_terminal_snr=zero_terminal)
    for detector in (Dcs(), Metric2()):
        with pytest.raises(NotApplicable, match="noise alone"):
            scored(model, detector, ["one"])
    for detector in (SeedAgreement(), MidNoise(), TwoProbe()):
        assert (scored(model, detector, ["one"]).by_seed > 0.1).all(), detector.name


def test_seed_agreement_is_the_mean_cosine_of_pairs(make_oracle):
    """By hand, pair by pair, from the closed form's clean latents; its mean over seeds is the mean over pairs."""
    model = make_oracle("v_prediction")
    x, alpha, sigma = at_start(model)
    rows = []
    for prompt in PROMPTS:
        with_prompt, without = (
            model.denoiser(x, alpha, sigma, model.encode([text] * 3).embeds) for text in (prompt, "")
        )
        g = (with_prompt - without).flatten(1)
        rows.append([[float(g[i] @ g[j] / g[i].norm() / g[j].norm()) for j in range(3)] for i in range(3)])
    cosines = torch.tensor(rows)
    result = scored(model, SeedAgreement())
    expected = (cosines.sum(2) - 1) / 2
    assert torch.allclose(result.by_seed, expected, rtol=1e-4)
    pairs = torch.stack([cosines[:, i, j] for i, j in ((0, 1), (0, 2), (1, 2))], dim=1)
    assert torch.allclose(result.value, pairs.mean(1), rtol=1e-4)
    with pytest.raises(UserError, match="two or more"):
        scored(model, SeedAgreement(), seeds=[0])


def test_the_jump_is_a_ddim_step(make_oracle):
    """Where diffusers' DDIM, set to the two timesteps, goes with this guidance, and the gap there."""
    from diffusers import DDIMScheduler

    model = make_oracle()
    target = timestep_at(model, 1.2)
    start = model.schedule(50).timesteps[0]
    ratio = torch.divide(*model.alpha_sigma(target)).item()
    assert 1.2 <= ratio < torch.divide(*model.alpha_sigma(target - 1)).item()
    x, alpha, sigma = at_start(model)
    cond, empty = model.encode(["pair"] * 3), model.encode([""] * 3)
    eps = [(x - alpha * model.denoiser(x, alpha, sigma, c.embeds)) / sigma for c in (cond, empty)]
    scheduler = DDIMScheduler.from_config(model._scheduler.config)
    scheduler.set_timesteps(50)
    scheduler.num_inference_steps = 1
    scheduler.config.num_train_timesteps = int(start - target)  # from the first timestep to the target in one step
    x = scheduler.step(eps[1] + 3 * (eps[0] - eps[1]), start, x).prev_sample
    expected = model.predict(x, target, cond).gap(model.predict(x, target, empty))
    assert torch.allclose(scored(model, MidNoise(), ["pair"]).by_seed[0], expected, rtol=1e-4)


def test_sharpness_is_the_length_of_a_jacobian_vector_product(gaussians):
    """For two Gaussians Δ is linear: J is diagonal, and known. For pictures, forward differentiation agrees."""
    x, alpha, sigma = at_start(gaussians)
    gains, deltas = [], []
    for part in (gaussians.denoiser.narrow, gaussians.denoiser):
        gain = sigma / (alpha.square() * part.variance + sigma.square())  # of ε = gain · (x − α·mean)
        gains.append(gain)
        deltas.append(gain * (x - alpha * part.mean))
    expected = ((gains[0] - gains[1]) * (deltas[0] - deltas[1])).flatten(1).norm(dim=1)
    assert torch.allclose(scored(gaussians, Sharpness(), ["any"]).by_seed[0].double(), expected, rtol=1e-3)
    model = AtLevel("epsilon")
    rows = {text: model.encode([text] * 3).embeds for text in ("pair", "")}

    def delta(x):
        means = [model.denoiser(x, alpha, sigma, embeds) for embeds in rows.values()]
        return -alpha / sigma * (means[0] - means[1])

    product = jvp(delta, (x,), (delta(x),))[1].flatten(1).norm(dim=1)
    for step, error in ((1e-3, 1e-2), (1e-2, 2e-2)):
        assert torch.allclose(scored(model, Sharpness(step), ["pair"]).by_seed[0].double(), product, rtol=error)


def test_the_condition_jacobian_of_a_straight_way_is_the_gap_and_of_a_late_one_more(gaussians):
    """Along e^p the derivative at the prompt is p times the difference of the ends."""
    gap = scored(gaussians, NoiseGap(), ["any"]).by_seed
    straight = scored(gaussians, ConditionJacobian(), ["any"])
    assert torch.allclose(straight.by_seed, gap, rtol=1e-4)
    assert torch.allclose(straight.columns["late"], torch.ones(1, 3), rtol=1e-4)
    gaussians.denoiser.power = 3.0
    late = scored(gaussians, ConditionJacobian(step=1e-3), ["any"])
    assert torch.allclose(late.by_seed, 3 * gap, rtol=1e-2)
    assert torch.allclose(late.columns["late"], torch.full((1, 3), 3.0), rtol=1e-2)


def test_a_blend_moves_everything_that_is_read(tiny_model):
    """Pooled vectors in step with the embeddings; masks and ids are the prompt's, and no text stands for it."""
    cond, empty = tiny_model.encode(["a green bicycle"]), tiny_model.encode([""])
    pooled = [torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 2.0]])]
    result = blended(replace(cond, pooled=pooled[0]), replace(empty, pooled=pooled[1]), 0.25)
    assert torch.allclose(result.embeds, 0.75 * cond.embeds + 0.25 * empty.embeds, atol=1e-6)
    assert result.pooled.tolist() == [[1.5, 2.0]]
    assert torch.equal(result.ids, cond.ids)
    assert result.texts is None


def test_anisotropy_is_one_cosine_over_all_values(make_oracle):
    """From the closed form's scores (α·x̂0 − x) / σ²; the average over pixels of cosines of channels is another."""
    model = make_oracle("v_prediction")
    x, _, _ = at_start(model)
    alpha, sigma = model.alpha_sigma(model.schedule(50).timesteps[-3])
    cond, empty = (
        (alpha * model.denoiser(x, alpha, sigma, model.encode([text] * 3).embeds) - x) / sigma**2
        for text in ("other", "")
    )
    text = cond - empty
    expected = (text * empty).flatten(1).sum(1) / text.flatten(1).norm(dim=1) / empty.flatten(1).norm(dim=1)
    result = scored(model, Anisotropy(), ["other"])
    assert torch.allclose(result.by_seed[0].double(), expected, rtol=1e-4)
    by_pixel = torch.cosine_similarity(text, empty, dim=1).mean(dim=(1, 2))
    assert not torch.allclose(by_pixel, expected, rtol=0.05)
    assert torch.allclose(result.columns["text_norm"][0, :, 0], scored(model, NoiseGap(), ["other"]).by_seed[0])


def test_dcs_is_the_distance_of_one_guided_step_for_every_seed(gaussians):
    """In the scale in which noise is added to the picture; no seed's score is lost, each is that of the seed alone."""
    x, alpha, sigma = at_start(gaussians)
    means = [part.forward(x, alpha, sigma, torch.zeros(3, 1, 1)) for part in (gaussians.denoiser.narrow,)]
    without = Gaussian.forward(gaussians.denoiser, x, alpha, sigma, torch.zeros(3, 1, 1))
    guided = without + 7.5 * (means[0] - without)
    expected = (x / alpha - guided).square().mean(dim=(1, 2, 3))
    result = scored(gaussians, Dcs(), ["any"]).by_seed[0]
    assert torch.allclose(result.double(), expected, rtol=1e-4)
    alone = torch.cat([scored(gaussians, Dcs(), ["any"], [seed]).by_seed[0] for seed in SEEDS])
    assert torch.allclose(result, alone, rtol=1e-5)


def test_metric_2_is_the_distance_of_gradients_of_half_squared_lengths(gaussians):
    """For Gaussians Jᵀε = gain · ε."""
    x, alpha, sigma = at_start(gaussians)
    gradients = []
    for part in (gaussians.denoiser.narrow, gaussians.denoiser):
        gain = sigma / (alpha.square() * part.variance + sigma.square())
        gradients.append(gain.square() * (x - alpha * part.mean))
    expected = (gradients[0] - gradients[1]).square().sum(dim=(1, 2, 3))
    assert torch.allclose(scored(gaussians, Metric2(), ["any"]).by_seed[0].double(), expected, rtol=1e-3)


def test_dsm_does_not_apply_where_sampling_has_fewer_steps(tiny_model):
    """A model for two steps leaves it out of a ranking, and a cascade to it, instead of ending the ranking."""
    for name in ("dsm", "cascade"):
        with pytest.raises(NotApplicable, match="dsm compares sampling steps 2 and 3: there are 2"):
            parse("detector", name).score(Subject(tiny_model, Sampler(2)), tiny_model.encode(["a"]), seeds=[0, 1])


def test_dsm_is_the_change_of_the_noise_between_two_steps(make_oracle):
    """Along a path of DDIM steps written out here, from the second to the third step."""
    model = make_oracle("v_prediction")
    x = model.noise(generators(SEEDS))
    timesteps = model.schedule(5).timesteps
    noises = []
    for t, t_next in pairwise(timesteps[:4]):
        alpha, sigma = model.alpha_sigma(t)
        means = [model.denoiser(x, alpha, sigma, model.encode([text] * 3).embeds) for text in ("one", "")]
        noises.append((x - alpha * means[0]) / sigma)
        clean = means[1] + 7.5 * (means[0] - means[1])
        eps = (x - alpha * clean) / sigma
        alpha, sigma = model.alpha_sigma(t_next)
        x = alpha * clean + sigma * eps
    expected = (noises[2] - noises[1]).square().sum(dim=(1, 2, 3))
    assert torch.allclose(scored(model, Dsm(), ["one"], steps=5).by_seed[0].double(), expected, rtol=1e-4)
    with pytest.raises(NotApplicable, match="steps 2 and 3: there are 2"):
        scored(model, Dsm(), ["one"], steps=2)


def test_max_z_is_the_most_unusual_step():
    """Median and deviation are those of other prompts than the scored ones; a memory of one step is not lost."""
    model = AtLevel("epsilon")
    ordinary = scored(model, MaxZ(), ["pair"], range(18), steps=5)
    values = ordinary.columns["text_norm"].reshape(18, 5).double()
    fitted = MaxZ().fitted(ordinary)
    assert torch.allclose(torch.tensor(fitted.center).double(), values.quantile(0.5, dim=0), rtol=1e-6)
    assert torch.allclose(torch.tensor(fitted.scale).double(), values.std(dim=0), rtol=1e-6)
    result = scored(model, fitted, ["one"], steps=5)
    gaps = scored(model, NoiseGap(last=5), ["one"], steps=5).columns["text_norm"][0].double()
    standardized = (gaps - values.quantile(0.5, dim=0)) / values.std(dim=0)
    expected = standardized.nan_to_num().amax(dim=1)  # at the last step no prompt differs from none
    assert torch.allclose(result.by_seed[0].double(), expected, rtol=1e-4)
    assert scored(model, MaxZ(), ["one"], steps=5).by_seed[0].tolist() == pytest.approx(gaps.amax(1).tolist(), rel=1e-4)


def test_stability_is_two_sided(make_oracle):
    """Steps that are unusually short count as much as long ones."""
    model = make_oracle()
    ordinary = scored(model, Stability(), ["any", "all", "pair"], range(6), steps=4)
    lengths = ordinary.columns["step_length"].reshape(18, 4).double()
    fitted = Stability().fitted(ordinary)
    result = scored(model, fitted, ["one"], steps=4)
    own = result.columns["step_length"][0].double()
    z = (own - lengths.mean(dim=0)) / lengths.std(dim=0)
    assert torch.allclose(result.by_seed[0].double(), z.abs().amax(dim=1), rtol=1e-3)


COSTS = {  # evaluations of 2 prompts at 3 seeds in 4 steps: what they cost, and what they share
    "noise-gap": (6, 3),
    "noise-gap:last=3": (36, 0),
    "seed-agreement": (6, 3),
    "mid-noise": (18, 3),
    "two-probe": (18, 3),
    "max-z": (48, 0),
    "stability": (48, 0),
    "dsm": (36, 0),
    "sharpness": (18, 3),
    "condition-jacobian": (12, 3),
    "anisotropy": (12, 6),
    "dcs": (6, 3),
    "metric-2": (15, 3),
    "clique": (48, 0),
    "edge-agreement": (6, 3),
    "noise-similarity": (6, 3),
    "attention-entropy": (60, 0),
    "masked-gap": (54, 0),
    "cascade": (42, 3),
}


@pytest.mark.parametrize("name", COSTS)
def test_the_cost_is_what_the_denoiser_was_asked_for(tiny_model, cost, name):
    """No step is taken that nobody reads."""
    detector = parse("detector", name)
    scores = detector.score(Subject(tiny_model, Sampler(4)), tiny_model.encode(["a", "b"]), seeds=SEEDS)
    own, shared = COSTS[name]
    assert (scores.evaluations, cost.forward) == (own, own + shared)


def test_one_recording_feeds_all_detectors(tiny_model, cost):
    """What one has read costs the next nothing; each gives what it gives alone, and costs add up."""
    detectors = [parse("detector", name) for name in COSTS]
    cond = tiny_model.encode(["a green bicycle", "an owl on a fence"])
    recorder = Recorder(tiny_model, Sampler(4), SEEDS)
    together = score_each(detectors, recorder, cond)
    assert sum(scores.evaluations for scores in together) + recorder.shared == cost.forward
    # The first step, three steps of the path, then all four, the jump, a moved x, a faded prompt, low noise, gradients,
    # attention at two steps, and at the last once more.
    assert cost.forward == 6 + 3 + 36 + 48 + 12 + 12 + 6 + 6 + 3 + 9 + 12 + 6
    for detector, scores in zip(detectors, together, strict=True):
        alone = detector.score(Subject(tiny_model, Sampler(4)), cond, seeds=SEEDS)
        assert torch.allclose(scores.by_seed, alone.by_seed, rtol=1e-3, atol=1e-6), detector.name


def test_a_recording_is_the_same_however_many_rows_are_evaluated_at_once(tiny_model, monkeypatch):
    """Conditional and unconditional rows belong together, whatever the batch."""
    results = []
    for rows in (1, 64):
        monkeypatch.setattr("unmemorize.core.recording.ROWS", rows)
        monkeypatch.setattr("unmemorize.core.recording.PATHS", rows)
        detectors = [parse("detector", name) for name in COSTS]
        recorder = Recorder(tiny_model, Sampler(4), SEEDS)
        results.append(score_each(detectors, recorder, tiny_model.encode(["a green bicycle", "an owl on a fence"])))
    for one, many in zip(*results, strict=True):
        assert torch.allclose(one.by_seed, many.by_seed, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize(
    "text",
    [
        "mid-noise:ratio=0",
        "sharpness:step=0",
        "condition-jacobian:step=2",
        "anisotropy:before=0",
        "dsm:step=-1",
        "clique:threshold=1",
        "edge-agreement:threshold=0",
        "cascade:share=0",
        "cascade:screen=two-probe",
    ],
)
def test_settings_out_of_range_are_refused(text):
    with pytest.raises(UserError, match=text.split(":")[0]):
        parse("detector", text)


def test_without_guidance_a_path_has_no_contrast(tiny_model):
    subject = Subject(tiny_model, Sampler(2, 1.0))
    with pytest.raises(NotApplicable, match="max-z"):
        MaxZ().score(subject, tiny_model.encode(["a"]), seeds=[0])
    assert Stability().score(subject, tiny_model.encode(["a"]), seeds=[0]).by_seed.isfinite().all()
