"""What is done to attention and to padding, against the formulas written out."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDIMScheduler, HeunDiscreteScheduler

from pipelines import tiny
from unmemorize.core.errors import NotApplicable
from unmemorize.core.methods import Subject, parse
from unmemorize.core.model import Condition
from unmemorize.core.sample import Sampler, trajectory
from unmemorize.mitigate.attention_reweighting import reweighted
from unmemorize.mitigate.attractive_repulsive import AttractiveRepulsiveSampler, attenuated
from unmemorize.models.load import wrap

PROMPTS = ["a lighthouse at dusk", "an owl on a fence", "the old harbour"]


@pytest.fixture
def logits():
    return torch.randn(3, 2, 5, 7, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("threshold", [-10.0, 0.1, 1.0])
def test_attenuation_is_the_paper_s_where_logits_are_positive_and_never_raises_one(logits, threshold):
    """Token by token and head by head, written out; the begin token never spikes."""
    found = attenuated(logits, alpha=0.3, threshold=threshold)
    assert (found <= logits).all()
    spiking = 0
    for n in range(3):
        for h in range(2):
            peaks = [logits[n, h, :, i].max().item() for i in range(7)]
            mean = sum(peaks[1:]) / 6
            std = math.sqrt(sum((p - mean) ** 2 for p in peaks[1:]) / 5)
            for i in range(7):
                spikes = i > 0 and (peaks[i] - mean) / std > threshold
                spiking += spikes
                own = logits[n, h, :, i]
                expected = torch.where(own > 0, 0.3 * own, own) if spikes else own
                assert torch.allclose(found[n, h, :, i], expected, atol=1e-6)
    assert spiking > 0


def test_reweighting_raises_the_begin_token_and_hides_padding(logits):
    """Positive logits are multiplied, as in the paper; negative ones rise too; padding has no weight in any row."""
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] * 2 + [0] * 5])
    found = reweighted(logits, mask, 1.25)
    begin = logits[..., 0]
    assert torch.allclose(found[..., 0], torch.where(begin > 0, 1.25 * begin, 0.75 * begin))
    weights = found.softmax(dim=-1)
    for row, length in enumerate((7, 4, 2)):
        assert torch.equal(found[row, ..., 1:length], logits[row, ..., 1:length])
        assert weights[row, ..., length:].abs().max() == 0 if length < 7 else True
    assert torch.equal(reweighted(logits, None, 1.0), logits)


def drawn(model, mitigation, cond, seeds, guidance=7.5):
    with parse("mitigation", mitigation).applied(Subject(model, Sampler(3, guidance))) as changed:
        return list(trajectory(model, cond, seeds=seeds, sampler=changed.sampler))


def stepped(model, step, output):
    return model.schedule(3).step(output, step.t, step.x, [])


def test_guard_s_guidance_is_its_formula(tiny_model):
    """ε_u + s (ε⁺ − ε_u) − r (ε⁻ − ε_u), r falling as a cosine; without attenuation or repulsion, plain guidance."""
    cond = tiny_model.encode(PROMPTS)

    def change(layer, logits):
        return attenuated(logits, alpha=0.3, threshold=0.1)

    with torch.no_grad():
        for step in drawn(tiny_model, "attractive-repulsive", cond, [0, 1, 2]):
            with tiny_model.attending(change, "down-mid"):
                positive = step.predict(cond).output
            own, empty = step.cond.output, step.uncond.output
            r = 2.0 * 0.5 * (1 + math.cos(math.pi * step.index / 3))
            expected = empty + 7.5 * (positive - empty) - r * (own - empty)
            assert torch.allclose(step.x_next, stepped(tiny_model, step, expected), atol=1e-4)
        for step in drawn(tiny_model, "attractive-repulsive:alpha=1,repulsion=0", cond, [0, 1, 2]):
            assert torch.allclose(step.x_next, stepped(tiny_model, step, step.output), atol=1e-4)


@pytest.mark.parametrize("scheduler", [DDIMScheduler, HeunDiscreteScheduler])
def test_repulsion_falls_to_the_last_evaluation(make_pipe, scheduler):
    """Also where a scheduler evaluates twice a step."""
    pipe = make_pipe()
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    model = wrap(pipe)
    acting = AttractiveRepulsiveSampler(6, 7.5, alpha=1.0)
    found = []
    for step in trajectory(model, model.encode(PROMPTS[:1]), seeds=[0], sampler=Sampler(6, 7.5)):
        own = (step.cond.output - step.uncond.output).flatten()
        with torch.no_grad():
            moved = (acting.guide(step) - step.uncond.output).flatten()
        found.append(7.5 - (moved @ own / (own @ own)).item())
    assert found[0] == pytest.approx(2, abs=1e-3)
    assert found == sorted(found, reverse=True)
    assert found[-1] < 0.2


@pytest.mark.parametrize("guidance", [7.5, 1.0])
def test_only_the_prompt_s_rows_are_reweighted(tiny_model, guidance):
    """The empty prompt's prediction is as it was, of every row of a batch, with guidance and without."""
    cond = tiny_model.encode(PROMPTS)

    def change(layer, logits):
        return reweighted(logits, cond.mask, 1.25)

    with torch.no_grad():
        for step in drawn(tiny_model, "attention-reweighting", cond, [0, 1, 2], guidance):
            with tiny_model.attending(change):
                other = step.predict(cond).output
            assert not torch.allclose(other, step.cond.output, atol=1e-4)
            expected = other
            if guidance > 1:
                empty = tiny_model.predict(step.x, step.t, tiny_model.unconditional(3)).output
                expected = empty + guidance * (other - empty)
            assert torch.allclose(step.x_next, stepped(tiny_model, step, expected), atol=1e-4)


def test_three_evaluations_a_step_are_counted(tiny_model, cost):
    drawn(tiny_model, "attractive-repulsive", tiny_model.encode(PROMPTS[:1]), [0])
    assert cost.forward == 3 * 3


def changed(model, mitigation, cond):
    return parse("mitigation", mitigation).changed(model, cond, list(range(len(cond))))


def test_masked_padding_is_zero_from_the_end_token_on(tiny_model):
    """70% of it, rounded up; words, end token and ids stay."""
    cond = tiny_model.encode(PROMPTS)
    found = changed(tiny_model, "padding-masked", cond)
    for row in range(3):
        length = int(cond.mask[row].sum())
        upto = length + math.ceil(0.7 * (cond.embeds.shape[1] - length))
        assert torch.equal(found.embeds[row, :length], cond.embeds[row, :length])
        assert (found.embeds[row, length:upto] == 0).all()
        assert torch.equal(found.embeds[row, upto:], cond.embeds[row, upto:])
    assert torch.equal(changed(tiny_model, "padding-masked:share=0", cond).embeds, cond.embeds)


def test_replaced_padding_is_what_the_text_encoder_gives_for_such_ids(tiny_model):
    """Against the encoder itself, with the ids that a tokenizer with another padding token makes."""
    cond = tiny_model.encode(PROMPTS)
    word = tiny_model.pipe.tokenizer("!").input_ids[1]
    ids = torch.where(cond.mask == 0, word, cond.ids)
    with torch.no_grad():
        expected = tiny_model.pipe.text_encoder(ids)[0]
    found = changed(tiny_model, "padding-replaced:end=false", cond)
    assert torch.allclose(found.embeds, expected, atol=1e-5)
    assert not torch.allclose(found.embeds, cond.embeds, atol=1e-3)
    ended = changed(tiny_model, "padding-replaced", cond).embeds
    for row in range(3):
        last = int(cond.mask[row].sum()) - 1
        assert (ended[row, last] == 0).all()
        assert torch.allclose(ended[row, :last], cond.embeds[row, :last])


def test_searched_embeddings_keep_their_words_and_drawn_ones_have_no_padding(tiny_model):
    """So that an attack meets it: a row that was searched is changed where its prompt was padded, and nowhere else."""
    cond = tiny_model.encode(PROMPTS)
    searched = cond.with_embeds(cond.embeds + 1)
    for name in ("padding-masked", "padding-replaced:end=false"):
        found = changed(tiny_model, name, searched).embeds
        words = cond.mask == 1
        assert torch.equal(found[words], searched.embeds[words])
        assert not torch.equal(found[~words], searched.embeds[~words])
        drawn = Condition(torch.randn_like(cond.embeds))
        assert torch.equal(changed(tiny_model, name, drawn).embeds, drawn.embeds)


def test_padding_of_another_kind_is_not_applicable():
    """Two encoders, no CLIP, and a tokenizer that pads with another token."""
    xl, flow = (wrap(tiny(family), size=(64, 64)) for family in ("sdxl", "sd3"))
    with pytest.raises(NotApplicable, match="two encoders"):
        changed(xl, "padding-replaced", xl.encode(PROMPTS))
    for name in ("padding-replaced", "padding-masked"):
        with pytest.raises(NotApplicable):
            changed(flow, name, flow.encode(PROMPTS))
    pipe = tiny("sd")
    pipe.tokenizer.pad_token = "!"
    other = wrap(pipe, size=(64, 64))
    with pytest.raises(NotApplicable, match="no copy of the end token"):
        changed(other, "padding-replaced", other.encode(PROMPTS))
