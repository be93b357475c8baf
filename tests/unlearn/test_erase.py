"""Erasing: its two errors written out, triggers that are kept, and a run resumed to the byte."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from pipelines import tiny
from unmemorize.core.hooks import replaced
from unmemorize.core.methods import Subject, Training, parse
from unmemorize.core.model import Condition
from unmemorize.core.results import Found, Pairs
from unmemorize.models.load import wrap
from unmemorize.unlearn.denoising import draw_noise, draw_rows
from unmemorize.unlearn.erase import Erase, Erasing
from unmemorize.unlearn.finetune import Finetune, finetune
from unmemorize.unlearn.loop import Team

TEAM = Team()
QUICK = Erase(every=2, ordinary=4, hostile=6, own=0.15, elsewhere=0.0)


class Rehearsal:
    """Two stages, the second of which depends on the weights."""

    updates = 2

    def attack(self, subject, latents, start, *, seeds, keep):
        weight = subject.model.denoiser.conv_in.weight.detach().sum()
        stages = {1: start.with_embeds(start.embeds + 1), 2: start.with_embeds(start.embeds + weight)}
        return Found(stages, torch.zeros(1, len(latents)), 0)


REHEARSAL = Rehearsal()


def erase(model, how=QUICK, attack=REHEARSAL):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(8, 4, 8, 8, generator=generator)
    texts = [f"a thing {i}" for i in range(8)]
    captions = model.encode(texts)
    weights = {name: p.detach().clone() for name, p in model.denoiser.named_parameters()}
    before = partial(replaced, model.denoiser, weights)
    memorized = Pairs(latents[:3], captions[:3])
    return Erasing(memorized, latents[3:], texts[3:], model.encode([""]), before, attack, how)


def test_a_model_as_it_was_has_nothing_to_learn_on_ordinary_rows(make_pipe):
    """It is its own target there; under a trigger it is not."""
    model = wrap(make_pipe())
    shown = erase(model).backward(model, 0, TEAM)
    assert shown["ordinary"].item() == 0
    assert shown["triggers"].item() > 1e-6


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_a_trigger_is_to_lead_no_nearer_than_the_empty_prompt_and_a_margin(make_pipe, margin):
    """The error written out; the weights as they were are what gives the empty prompt's prediction."""
    model = wrap(make_pipe())
    objective = erase(model, replace(QUICK, fresh=0.0, own=1.0, margin=margin, weight=1.0))
    prompts = objective.state()["triggers"][0]
    rows = draw_rows(3, 6, slice(0, 6), update=1, name=(0, 1))
    items = (rows.coins() * 3).long()  # as much is left of each
    rows.coins(), rows.coins()
    t = torch.cat([torch.randint(1000, (1,), generator=g) for g in rows.streams])
    noise = torch.stack([torch.randn(4, 8, 8, generator=g) for g in rows.streams])
    memorized = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(0))[:3]
    x = model.add_noise(memorized[items], noise, t)
    empty = model.predict(x, t, Condition(model.encode([""] * 6).embeds)).eps.detach()
    with torch.no_grad():
        for p in model.denoiser.parameters():
            p.add_(0.01)
    given = model.predict(x, t, Condition(prompts[items])).eps
    alphas = model.pipe.scheduler.alphas_cumprod[t]
    expected = 0.0
    for k in range(6):
        way = (noise[k] - empty[k]).flatten()
        share = (given[k] - empty[k]).flatten() @ way / (way @ way)
        count = ((1 - alphas[k]) / alphas[k]).clamp(1, 10)
        expected += count * way.square().mean() * max(share + margin, 0) ** 2 / 6
    assert objective.backward(model, 1, TEAM)["triggers"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_a_trigger_that_leads_away_is_left_alone(make_pipe):
    """What does not approach the picture has no error and no gradient, whatever else it gives."""
    model = wrap(make_pipe())
    objective = erase(model, replace(QUICK, margin=-10.0, fresh=0.0, own=1.0))
    model.denoiser.zero_grad()
    assert objective.backward(model, 1, TEAM)["triggers"].item() == 0
    assert not any(p.grad is not None and p.grad.any() for p in model.denoiser.parameters())


def test_elsewhere_another_picture_is_shown_at_high_noise(make_pipe):
    """Under its own prompt: an ordinary picture's state, and the way leads from there to the memorized one."""
    model = wrap(make_pipe())
    objective = erase(model, replace(QUICK, elsewhere=1.0, fresh=0.0, own=1.0))
    rows, chosen = objective._hostile_rows(1, TEAM)
    memorized = objective._memorized.latents[rows.items]
    streams = [g.get_state() for g in rows.streams]
    noise = draw_noise(memorized, rows)
    for generator, state in zip(rows.streams, streams, strict=True):
        generator.set_state(state)
    x, t, margin = objective._states(model, memorized, rows, own=chosen == 0)
    assert (t >= 500).all()
    assert not margin.any()
    noisy = [model.add_noise(z.expand_as(x), noise.eps, t) for z in objective._ordinary]
    apart = torch.stack([(x - other).abs().amax(dim=(1, 2, 3)) for other in noisy])
    assert apart.min(dim=0).values.max() < 1e-5
    alphas = model.pipe.scheduler.alphas_cumprod[t].reshape(-1, 1, 1, 1)
    aim = (x - alphas.sqrt() * memorized) / (1 - alphas).sqrt()

    class Giving:
        """A model that gives the memorized picture under triggers, whatever it is shown."""

        denoiser = model.denoiser

        def predict(self, x, t, cond):
            said = model.predict(x, t, cond)
            asked = (cond.embeds == objective._empty.embeds).flatten(1).all(1).reshape(-1, 1, 1, 1)
            return replace(said, output=torch.where(asked, said.output, aim))

    triggers = Condition(memorized.new_ones(6, *objective._empty.embeds.shape[1:]))
    error, whole = objective._approach(Giving(), memorized, triggers, x, t, margin)
    assert torch.allclose(error, whole, rtol=1e-4)


def test_triggers_count_less_in_the_end(make_pipe):
    """In the last two fifths of the updates their gradient has the other weight."""
    model, size = wrap(make_pipe()), {}
    for updates in (1000, 5):
        how = replace(QUICK, fresh=0.0, own=1.0, weight=1.0, settled=0.25, updates=updates)
        objective = erase(model, how)
        model.denoiser.zero_grad()
        objective.backward(model, 3, TEAM)
        norms = [p.grad.norm() for p in model.denoiser.parameters() if p.grad is not None]
        size[updates] = torch.stack(norms).norm()  # on ordinary rows a model as it was has no gradient
    assert size[5] / size[1000] == pytest.approx(0.25, rel=1e-4)


def test_rows_go_to_pictures_of_which_more_is_left(make_pipe):
    """In proportion to the cube of what is left."""
    objective = erase(wrap(make_pipe()))
    objective.load_state(objective.state() | {"left": torch.tensor([0.1, 0.2, 0.3])})
    rows = draw_rows(3, 6000, slice(0, 6000), update=0, name=(0, 1))
    share = torch.bincount(objective._pictures(rows), minlength=3) / 6000
    assert share.tolist() == pytest.approx([1 / 36, 8 / 36, 27 / 36], abs=0.03)


def test_every_trigger_is_kept_and_the_newest_are_shown_most(make_pipe):
    """Each attack adds its stages for every picture; starts are of all three kinds."""
    model, starts = wrap(make_pipe()), []

    class Recorded(Rehearsal):
        def attack(self, subject, latents, start, *, seeds, keep):
            starts.append(start.embeds)
            assert len(set(seeds)) == 3
            return super().attack(subject, latents, start, seeds=seeds, keep=keep)

    objective = erase(model, attack=Recorded())
    for update in range(12):
        objective.backward(model, update, TEAM)
    assert len(starts) == 6
    assert objective.state()["triggers"].shape[:2] == (13, 3)
    assert int(objective.state()["old"]) == 11
    prompts = objective.state()["triggers"][0]
    own = sum(torch.equal(y, prompts[k]) for init in starts for k, y in enumerate(init))
    assert 0 < own < 18
    rows = draw_rows(3, 6000, slice(0, 6000), update=0, name=(0, 1))
    fresh = (objective._chosen(rows) >= 11).float().mean().item()
    assert fresh == pytest.approx(QUICK.fresh, abs=0.03)


def test_a_run_that_stopped_goes_on_to_the_same_bytes(make_pipe, tmp_path):
    """Triggers found before the stop are there after it."""
    how = Finetune(updates=5, lr=1e-3, save_every=3, ema=0.9)

    class Stop(Exception):
        pass

    def stop(stage, done, total):
        if done == 4:
            raise Stop

    def train(folder, progress=lambda stage, done, total: None):
        model = wrap(make_pipe())
        finetune(model, erase(model), how, folder, progress=progress)
        return model.denoiser.state_dict()

    whole = train(tmp_path / "whole")
    with pytest.raises(Stop):
        train(tmp_path / "cut", stop)
    cut = train(tmp_path / "cut")
    assert all(torch.equal(cut[name], value) for name, value in whole.items())


def test_the_method_rehearses_the_attack_it_names_and_keeps_its_way(make_pipe, tmp_path):
    """Triggers come from a quarter, a half and the end; captions of the pictures stay, and made-up ones beside them."""
    model = wrap(make_pipe())
    latents = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    captions = model.encode([f"a thing {i}" for i in range(8)])
    method = parse("unlearner", "erase:attack=dori,every=2,ordinary=2,hostile=2")
    forget, keep = Pairs(latents[:2], captions[:2]), Pairs(latents[2:], captions[2:])
    objective = method.objective(Subject(model), forget, keep, Training(tmp_path, surrogates=None))
    assert objective._attack.name == "dori"
    assert objective._taken == [12, 25, 50]
    assert set(captions[2:].texts) <= set(objective._captions)
    assert len(objective._captions) > 4000


def test_captions_are_encoded_as_they_are_used():
    """Never all of them, and in a family whose prompts are as long as they are, starts fit the picture's own prompt."""
    model = wrap(tiny("z_image"), size=(64, 64))
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    texts = [f"a thing, and {i} things more" for i in range(50)]
    own = Pairs(latents[:1], model.encode(["an owl on a fence"]))
    objective = Erasing(own, latents, [*texts, "a"], model.encode([""]), {}, REHEARSAL, QUICK)
    sizes, encode = [], model.encode
    model.encode = lambda prompts: sizes.append(len(prompts)) or encode(prompts)
    _, captions, _ = objective._ordinary_rows(model, 0, TEAM)
    starts = [objective._init(model, 0, torch.Generator().manual_seed(seed)) for seed in range(12)]
    assert len(captions) == QUICK.ordinary
    assert {start.shape for start in starts} == {own.captions.embeds[0].shape}
    assert set(sizes) == {QUICK.ordinary, 1}


def test_the_last_place_of_a_draw_is_the_last_trigger(make_pipe):
    """Of a coin just below 1, which float32 rounds up once a count is added to it."""
    model = wrap(make_pipe())
    objective = erase(model, replace(QUICK, fresh=1.0, own=0.0))
    objective._old, objective._triggers = 238, torch.zeros(241, 3, 1, 1)

    class Coins:
        def coins(self):
            return torch.tensor([0.0, 1 - 2**-24])

    assert objective._chosen(Coins()).tolist() == [238, 240]


def test_adapters_learn_beside_the_model_as_it_was(make_pipe, tmp_path):
    """At first ordinary rows have no error; the model that is trained has one later, and only attention changes."""
    model = wrap(make_pipe())
    before = {name: p.clone() for name, p in model.denoiser.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    latents, texts = torch.randn(8, 4, 8, 8, generator=generator), [f"a thing {i}" for i in range(8)]
    pairs = Pairs(latents, model.encode(texts))
    forget, keep = (Pairs(pairs.latents[rows], pairs.captions[rows]) for rows in (slice(0, 3), slice(3, 8)))
    how = replace(QUICK, updates=4, lora=2, lr=1e-2, check_every=0, attack="high-noise:updates=1,batch=1")
    trained = how.train(Subject(model), forget, keep, Training(tmp_path, surrogates=lambda: None))
    assert trained.losses["ordinary"][0] == 0
    assert (trained.losses["ordinary"][1:] > 0).all()
    changed = {name for name, value in model.denoiser.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(".attn" in name for name in changed)
