"""The cheaper and the dearer attack: on a model that knows its pictures, batch by batch, and what they cost."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from unmemorize.attack.adaptive import Adaptive, mixed
from unmemorize.attack.dori import Dori
from unmemorize.attack.high_noise import FromNoise, HighNoise
from unmemorize.core.methods import Subject
from unmemorize.core.model import Condition
from unmemorize.core.sample import Sampler, generate, generators, sample
from unmemorize.data.bundle import Bundle
from unmemorize.mitigate.guard import Guard, magnitudes
from unmemorize.mitigate.perturb import EmbeddingNoise
from unmemorize.models.load import load
from unmemorize.testbed.embedded import own

SMALL = Adaptive(updates=20, seeds=(90,), sampling=2)


def dori(model, latents, start, *, seeds, how, **options):
    return how.attack(Subject(model), latents, start, seeds=seeds, **options)


def adaptive(model, latents, starts, *, seeds, how, **options):
    return how.search(Subject(model), latents, starts, seeds=seeds, **options)


@pytest.fixture
def targets(tiny_model):
    """Latents of three pictures, and embeddings to start from."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 4, 8, 8, generator=generator), tiny_model.encode(["one", "two", "three"])


@pytest.mark.parametrize("how", [HighNoise(), FromNoise()])
@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction", "flow"])
def test_a_stored_picture_is_found_at_high_noise(make_oracle, kind, how):
    """From an embedding that favours no picture, in every parameterisation."""
    oracle = make_oracle(kind)
    latent = oracle.denoiser.images[3:4]
    last = dori(oracle, latent, Condition(torch.zeros(1, 1, 6, dtype=torch.float64)), seeds=[0], how=how).last
    assert last.embeds.argmax().item() == 3
    image = generate(oracle, last, seeds=[1], sampler=Sampler(20, 1.0))
    assert (image - oracle.decode(latent)).square().mean().sqrt() < 0.03


def test_timesteps_stay_in_their_part(tiny_model):
    """None below the lowest, all up to the last."""
    how = HighNoise(batch=5000, lowest=0.6)
    times = tiny_model.timestep(how.levels(generators([0])[0]))
    assert times.min() == 600
    assert times.max() == 999


def test_from_noise_sees_nothing_of_the_picture(tiny_model, targets):
    """A model that knows the picture when it sees it, and then answers with nothing, is attacked as if it did not."""
    latents, init = targets
    seen = []

    class Watched:
        def __getattr__(self, name):
            return getattr(tiny_model, name)

        def add_noise(self, x0, noise, t):
            seen.append(x0)
            return tiny_model.add_noise(x0, noise, t)

        def predict(self, x, t, cond):
            return tiny_model.predict(x, t, cond)

    dori(Watched(), latents, init, seeds=[0, 1, 2], how=FromNoise(updates=2))
    assert len(seen) == 2
    assert not any(x0.any() for x0 in seen)


@pytest.mark.parametrize("how", [HighNoise(lowest=1.0), FromNoise(lowest=1.0)])
def test_nothing_but_the_highest_level_is_a_level(how):
    assert how.levels(generators([0])[0]).tolist() == pytest.approx([0.9995] * how.batch)


def test_the_rate_falls_to_zero():
    """From the full rate to one step from zero."""
    how = HighNoise(updates=10, lr=0.5)
    assert [how.rate(0), how.rate(9)] == pytest.approx([0.5, 0.05])


def test_the_error_is_the_noise_error_scaled(tiny_model, targets):
    """‖x0 − x̂0‖² = (σ/α)² ‖ε − ε_θ‖², where α² + σ² = 1."""
    latents, init = targets
    t = torch.tensor([400, 700, 999])
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        said = tiny_model.predict(tiny_model.add_noise(latents, noise, t), t, init)
    alphas = tiny_model.pipe.scheduler.alphas_cumprod[t]
    expected = Dori().errors(said, latents, noise) * (1 - alphas) / alphas
    assert HighNoise().errors(said, latents, noise) == pytest.approx(expected, rel=1e-3)


def test_the_adaptive_attack_takes_the_start_that_leads_there(oracle):
    """Among starts that all but exclude the picture, and one that does not, the one that does not."""
    latent = oracle.denoiser.images[2:3]
    embeds = torch.zeros(4, 1, 1, 6, dtype=torch.float64)
    embeds[:, 0, 0, 2] = torch.tensor([-400.0, -400.0, 0.0, -400.0])
    starts = [Condition(start) for start in embeds]
    attack = adaptive(oracle, latent, starts, seeds=[0], how=replace(SMALL, updates=185, guidance=1.0))
    assert attack.last.embeds.argmax().item() == 2
    image = generate(oracle, attack.last, seeds=[1], sampler=Sampler(20, 1.0))
    assert (image - oracle.decode(latent)).square().mean().sqrt() < 0.05


def test_a_picture_that_is_not_stored_stays_away(oracle):
    """However much is spent: the model has no embedding for it."""
    latent = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(9), dtype=torch.float64) * 2 - 1
    starts = [Condition(torch.zeros(1, 1, 6, dtype=torch.float64))] * 4
    attack = adaptive(oracle, latent, starts, seeds=[0], how=replace(SMALL, updates=185, guidance=1.0))
    image = generate(oracle, attack.last, seeds=[1], sampler=Sampler(20, 1.0))
    assert (image - oracle.decode(latent)).square().mean().sqrt() > 0.2


def test_the_adaptive_attack_does_not_depend_on_batching(tiny_model, targets):
    """One picture at a time or all at once, few rows or many: the same distances up to rounding."""
    latents, own = targets
    starts = mixed(own, [own], seeds=[5, 6, 7])
    together = adaptive(tiny_model, latents, starts, seeds=[5, 6, 7], how=SMALL).losses
    split = adaptive(tiny_model, latents, starts, seeds=[5, 6, 7], how=SMALL, rows=6).losses
    assert torch.allclose(together, split, atol=1e-3)
    alone = adaptive(tiny_model, latents[1:2], [start[1:2] for start in starts], seeds=[6], how=SMALL).losses
    assert torch.allclose(together[:, 1:2], alone, atol=1e-3)


def test_the_adaptive_attack_counts_what_it_spends(tiny_model, targets, cost):
    """All evaluations, those of the checks too; the distance is the smallest of all starts'."""
    latents, own = targets
    attack = adaptive(tiny_model, latents, mixed(own, [own], seeds=[5, 6, 7]), seeds=[5, 6, 7], how=SMALL)
    assert attack.evaluations == cost.forward
    assert attack.evaluations == 3 * 5 * (20 * 2 + 2 * 2 * 2)  # a search, and checks of both its ends
    assert attack.last.embeds.shape == own.embeds.shape
    first = adaptive(tiny_model, latents, [own], seeds=[5, 6, 7], how=SMALL)
    assert attack.losses.shape == first.losses.shape == (1, 3)
    assert (attack.losses <= first.losses + 1e-4).all()  # the same search from the first start is one of five


def test_the_adaptive_attack_takes_a_start_that_no_search_improves_on(oracle):
    """A prompt that gives the picture is kept, where what is found from it does not."""
    latent = oracle.denoiser.images[2:3]
    embeds = torch.full((2, 1, 1, 6), -400.0, dtype=torch.float64)
    embeds[0, 0, 0, 2] = 0.0

    class Astray(HighNoise):
        """Away from the picture."""

        def errors(self, prediction, x0, noise):
            return -super().errors(prediction, x0, noise)

    starts = [Condition(start) for start in embeds]
    attack = adaptive(oracle, latent, starts, seeds=[0], how=replace(SMALL, ways=(Astray(lr=50.0),), guidance=1.0))
    assert torch.equal(attack.last.embeds, embeds[0])


def test_mixed_starts(tiny_model, targets):
    """The own prompt twice, then noise, then one of each pool; the same for a seed whatever the company."""
    _, own = targets
    pool = tiny_model.encode(["four", "five"])
    starts = mixed(own, [pool, pool], seeds=[1, 2, 3])
    assert len(starts) == 6
    assert starts[0] is starts[1] is own
    assert all(len(start) == 3 for start in starts)
    for start in starts[4:]:
        assert set(start.texts) <= {"four", "five"}
    again = mixed(own[1:2], [pool, pool], seeds=[2])
    assert all(torch.equal(start.embeds[1:2], alone.embeds) for start, alone in zip(starts, again, strict=True))


def test_what_a_prompt_gives_beside_its_embedding_stays(tiny_model, targets):
    """A pooled vector, in families that read one, is every candidate's: the own prompt stays what it is."""
    latents, own = targets
    pooled = torch.arange(3.0)[:, None]
    starts = mixed(replace(own, pooled=pooled), [replace(own, pooled=pooled + 3)], seeds=[1, 2, 3])
    assert all(torch.equal(start.pooled, pooled) for start in starts[:4])
    found = adaptive(tiny_model, latents, starts, seeds=[1, 2, 3], how=SMALL)
    assert found.last.pooled is not None


def test_every_kind_of_start_is_searched_in_both_ways(tiny_model, targets, monkeypatch):
    """Own prompt, noise and both pools: each at high noise and each from noise."""
    latents, own = targets
    pools = [tiny_model.encode([text]) for text in ("four", "five")]
    searched = {}
    attack = Dori.attack

    def recorded(self, subject, latents, start, **options):
        searched[type(self)] = start.embeds.unflatten(0, (len(own), -1))
        return attack(self, subject, latents, start, **options)

    monkeypatch.setattr(Dori, "attack", recorded)
    ordinary, others = pools
    method = replace(SMALL, updates=1).prepared(prompts=others, ordinary=ordinary)
    found = method.attack(Subject(tiny_model), latents, own, seeds=[5, 6, 7])
    assert sorted(found.conditions) == [0, 1]
    assert set(searched) == {HighNoise, FromNoise}
    drawn = [pool.embeds[0] for pool in pools]
    for starts in searched.values():
        assert torch.equal(starts[:, 0], own.embeds)
        assert torch.equal(starts[:, 2:], torch.stack(drawn).expand(3, -1, -1, -1))
        assert not any(torch.equal(noise, known) for noise in starts[:, 1] for known in (*own.embeds, *drawn))


def test_candidates_are_checked_through_what_acts_on_sampling():
    """On the testbed, of a memorized picture: what its prompt gives is near, and no longer where a guard lowers it.

    The distance that the attack reports is that of the guarded sampler's own samples.
    """
    model, bundle = load("testbed"), Bundle("testbed", {}, own=own("testbed"))
    planted = next(prompt for prompt in bundle.prompts if prompt.kind == "verbatim" and prompt.copies == 300)
    references = bundle.references(model.image_size)
    latents = model.invert(references[[references.captions.index(planted.text)]].images)
    prompt, other = model.encode([planted.text]), model.encode(["a thing"])
    subject = Subject(model, Sampler(4))
    high, low = magnitudes(subject, prompt, [0])[0], magnitudes(subject, other, [0])[0]
    attack = Adaptive(updates=1, ways=(HighNoise(batch=1),), seeds=(7001,), sampling=4)
    plain = attack.search(subject, latents, [prompt], seeds=[0])
    with Guard(threshold=(high + low) / 2, target=low / 4).applied(subject) as guarded:
        found = attack.search(guarded, latents, [prompt], seeds=[0])
        samples = sample(model, found.last, seeds=[7001], sampler=guarded.sampler)
    by_hand = (samples - latents).square().mean().sqrt()
    assert found.losses.item() == pytest.approx(by_hand.item(), rel=1e-4)
    assert found.losses.item() > 1.1 * plain.losses.item()
    assert found.evaluations > plain.evaluations


def test_what_an_attack_meets_is_what_it_was_an_attack_on(tiny_model):
    """All meet weights; the adaptive one also what acts on sampling, in the choice of what it found."""
    assert {Guard.acts, EmbeddingNoise.acts} <= Adaptive.meets
    assert Dori.meets == HighNoise.meets == {"weights"}
    with EmbeddingNoise(scale=0.5).applied(Subject(tiny_model, Sampler(3))) as noisy:
        assert SMALL._checking(noisy) is noisy.sampler
    assert SMALL._checking(Subject(tiny_model, Sampler(3))) == Sampler(2, 7.5)
