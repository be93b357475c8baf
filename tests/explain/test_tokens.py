"""Word significance: against finite differences, a closed-form model, and its own second opinion."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from unmemorize.core.errors import NotApplicable
from unmemorize.core.methods import Subject
from unmemorize.core.sample import Sampler, first_unconditional
from unmemorize.explain.gradient import Gradient
from unmemorize.explain.leave_one_out import LeaveOneOut
from unmemorize.explain.tokens import rank_agreement
from unmemorize.explain.words import words_of

PROMPT = "a lighthouse at dusk"


def test_the_gradient_is_the_finite_difference(tiny_model):
    """Moving one token's embedding along any direction changes the magnitude as its gradient says."""
    tiny_model.denoiser.double()
    tiny_model.pipe.text_encoder.double()
    try:
        cond = tiny_model.encode([PROMPT])
        empty = first_unconditional(tiny_model, seeds=[0])
        t = tiny_model.schedule(50).timesteps[0]

        def value(embeds):
            # in float64 throughout: the package's norm is in float32, too coarse to difference
            cond_eps = tiny_model.predict(empty.x, t, replace(cond, embeds=embeds)).eps
            return (cond_eps - empty.eps).norm().item()

        found = Gradient().tokens(Subject(tiny_model), cond, seeds=[0])
        width = cond.embeds.shape[2]
        for token in (1, 3, 20):
            gradient = []
            for channel in range(width):
                step = torch.zeros_like(cond.embeds)
                step[0, token, channel] = 1e-5
                gradient.append((value(cond.embeds + step) - value(cond.embeds - step)) / 2e-5)
            assert found[token].item() == pytest.approx(torch.tensor(gradient).norm().item(), rel=1e-3)
    finally:
        tiny_model.denoiser.float()
        tiny_model.pipe.text_encoder.float()


def test_the_average_over_seeds_is_that_of_single_seeds(tiny_model):
    """Seeds share a batch and nothing else: no norm over the batch, no division by rows that are zero."""
    cond = tiny_model.encode([PROMPT])
    together = Gradient().tokens(Subject(tiny_model), cond, seeds=[0, 1, 2])
    apart = [Gradient().tokens(Subject(tiny_model), cond, seeds=[s]) for s in (0, 1, 2)]
    assert torch.allclose(together, torch.stack(apart).mean(0), rtol=1e-3, atol=1e-7)


def test_a_window_averages_over_its_steps(tiny_model):
    """Steps 0 to 2 weigh the same; each is taken on the path that guidance really follows."""
    cond = tiny_model.encode([PROMPT])
    subject = Subject(tiny_model, Sampler(5))
    whole = Gradient(last=2).tokens(subject, cond, seeds=[0])
    parts = [Gradient(first=k, last=k + 1).tokens(subject, cond, seeds=[0]) for k in (0, 1)]
    assert torch.allclose(whole, torch.stack(parts).mean(0), rtol=1e-3, atol=1e-7)
    with pytest.raises(NotApplicable):
        Gradient(last=2).tokens(Subject(tiny_model, Sampler(5, 1.0)), cond, seeds=[0])


def test_nothing_is_left_behind(tiny_model, cost):
    """Parameters get no gradient and keep their flags; the cost is two evaluations a seed."""
    Gradient().explain(Subject(tiny_model), PROMPT, seeds=[0, 1])
    assert all(p.grad is None and p.requires_grad for p in tiny_model.denoiser.parameters())
    assert cost.forward == 4


def test_all_significance_is_handed_out_once(tiny_model):
    """Words, begin, end and padding add up to the tokens, whatever script and punctuation the words are in."""
    prompt = "  Emma’s <i>red</i> Zürich-apple, 日本 apple "
    found = Gradient().explain(Subject(tiny_model), prompt, seeds=[0])
    assert found.words == ("Emma’s", "<i>red</i>", "Zürich-apple,", "日本", "apple")
    assert set(found.special) == {"begin", "end", "padding"}
    total = Gradient().tokens(Subject(tiny_model), tiny_model.encode([prompt]), seeds=[0]).sum().item()
    assert sum(found.significance) + sum(found.special.values()) == pytest.approx(total, rel=1e-4)


def test_pools(tiny_model):
    """The largest and the mean token of a word are no larger than their sum, and equal it for one token."""
    by = {pool: Gradient(pool=pool).explain(Subject(tiny_model), PROMPT, seeds=[0]) for pool in ("sum", "max", "mean")}
    for total, most, mean in zip(*(by[p].significance for p in ("sum", "max", "mean")), strict=True):
        assert 0 < mean <= most <= total


def test_words_beyond_the_longest_prompt_count_nothing(tiny_model):
    """A prompt of a thousand words explains its first ones and gives the rest zero."""
    found = Gradient().explain(Subject(tiny_model), "owl " * 1000, seeds=[0])
    assert len(found.significance) == 1000
    assert found.significance[0] > 0
    assert found.significance[-1] == 0


@pytest.mark.parametrize("prompt", ["", "   "])
def test_a_prompt_without_words(tiny_model, prompt):
    """It has no words, and its magnitude is zero with a gradient that is finite or nothing."""
    assert words_of(prompt) == []
    assert Gradient().explain(Subject(tiny_model), prompt, seeds=[0]).significance == ()


def test_leave_one_out_is_the_magnitude_without_the_word(tiny_model, cost):
    """What each word is said to add is what the magnitude loses when the prompt is typed without it."""
    explanation = LeaveOneOut().explain(Subject(tiny_model), PROMPT, seeds=[0, 1])
    assert explanation.evaluations == cost.forward == (4 + 1) * 2 + 2
    lost = _magnitude(tiny_model, PROMPT) - _magnitude(tiny_model, "a lighthouse dusk")
    assert explanation.significance[2] == pytest.approx(lost, abs=1e-5)


def test_a_word_said_twice_is_left_out_twice(tiny_model):
    """Neither mention alone is the word, and the comma between two names goes with the second."""
    explanation = LeaveOneOut().explain(Subject(tiny_model), "owl, red Owl", seeds=[0, 1])
    lost = _magnitude(tiny_model, "owl, red Owl") - _magnitude(tiny_model, "red")
    assert explanation.significance[0] == explanation.significance[2] == pytest.approx(lost, abs=1e-5)


def _magnitude(model, prompt):
    empty = first_unconditional(model, seeds=[0, 1])
    t = model.schedule(50).timesteps[0]
    return model.predict(empty.x, t, model.encode([prompt, prompt])).gap(empty).mean().item()


def test_rank_agreement():
    """Spearman's correlation; without an order on both sides there is none."""
    assert rank_agreement([1, 2, 3], [10, 20, 40]) == pytest.approx(1)
    assert rank_agreement([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert rank_agreement([1.0], [2.0]) is None
    assert rank_agreement([1, 1], [2, 3]) is None
