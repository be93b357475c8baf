"""Prompt search: on a text model made by hand, and through a real tokenizer and text encoder."""

from __future__ import annotations

import pytest
import torch

from unmemorize.attack.prompt import PromptSearch
from unmemorize.core.errors import UserError
from unmemorize.core.methods import Subject
from unmemorize.core.model import Condition
from unmemorize.core.vocabulary import Words
from unmemorize.models.oracle import OracleModel

WORDS = ["ash", "birch", "cedar", "elm", "fox", "hazel", "larch", "oak", "pine", "red", "rowan", "yew"]
BEGIN, END = len(WORDS), len(WORDS) + 1


class Spelled(OracleModel):
    """The oracle behind a text model: word w at position p adds strength[p, w] to picture 0's log prior."""

    vocabulary = WORDS

    def __init__(self, denoiser, planted):
        super().__init__(denoiser)
        self.token_table = torch.eye(len(WORDS) + 2, dtype=torch.float64)
        self.strength = torch.rand(4, len(WORDS) + 2, generator=torch.Generator().manual_seed(1)).double()
        for place, word in enumerate(planted, start=1):
            self.strength[place, WORDS.index(word)] = 4

    def encode(self, prompts):
        rows = [[BEGIN, *map(WORDS.index, prompt.split()), END, END, END][:4] for prompt in prompts]
        mask = torch.tensor([[1] * min(len(p.split()) + 2, 4) + [0] * (2 - len(p.split())) for p in prompts])
        ids = torch.tensor(rows)
        embeds = self.encode_tokens(ids, self.token_table[ids]).embeds
        return Condition(embeds, ids, mask, texts=tuple(prompts))

    def encode_tokens(self, ids, inputs):
        prior = torch.zeros(len(ids), 1, len(self.denoiser.images), dtype=torch.float64)
        prior[:, 0, 0] = (inputs * self.strength).sum((1, 2))
        return Condition(prior, ids)


@pytest.fixture
def spelled(oracle):
    """A model in which two words, in this order, bring a picture back."""
    return Spelled(oracle.denoiser, ["red", "fox"])


HOW = PromptSearch(updates=12, batch=8, tried=8, top=6, noisy=0.5)


def search(model, latent, start, *, seed, how=PromptSearch(), forbidden=(), rows=64):
    return how.search(model, latent, start, seed=seed, words=Words(model, forbidden), rows=rows)


def test_the_planted_words_are_found(spelled):
    """Of 144 prompts of two words, the one that favours the picture most; words of several tokens are left out."""
    start = spelled.encode(["oak elm"])
    with spelled.counted() as cost:
        found = HOW.attack(Subject(spelled), spelled.denoiser.images[:1], start, seeds=[0])
    assert found.last.texts == ("red fox",)
    assert found.conditions[0] is start
    assert found.evaluations == cost.forward == 12 * 8 * (1 + 8)
    assert found.losses.shape == (12, 1)


def test_a_start_that_is_no_prompt_is_refused(spelled):
    """An embedding has no words to swap."""
    start = Condition(spelled.encode(["oak elm"]).embeds)
    with pytest.raises(UserError, match="starts from words"):
        HOW.attack(Subject(spelled), spelled.denoiser.images[:1], start, seeds=[0])


def test_forbidden_words_are_not_typed(spelled):
    """Without one of the two, the other is still found."""
    prompt, _ = search(spelled, spelled.denoiser.images[:1], "oak elm", seed=0, how=HOW, forbidden=["Red"])
    first, second = prompt.split()
    assert first != "red"
    assert second == "fox"


def test_how_many_rows_go_together_changes_nothing(spelled):
    """One candidate at a time or all of them."""
    latent = spelled.denoiser.images[:1]
    one, all_ = (search(spelled, latent, "oak elm", seed=3, how=HOW, rows=rows) for rows in (1, 512))
    assert one[0] == all_[0]
    assert one[1] == pytest.approx(all_[1])


@pytest.mark.parametrize("start", ["", "oak walnut"])
def test_a_start_that_is_no_words_is_refused(spelled, start):
    """Nothing to swap, or nothing the model reads as one token."""
    with pytest.raises(UserError, match="start from words"):
        search(spelled, spelled.denoiser.images[:1], start, seed=0)


def test_what_is_found_reads_as_typed(tiny_model):
    """Through a real tokenizer: one token a word, and the same embedding as was scored."""
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    words = tiny_model.vocabulary
    prompt, _ = search(tiny_model, latent, " ".join(words[:3]), seed=0, how=PromptSearch(updates=3, tried=6))
    ids = tiny_model.encode([prompt]).ids[0]
    assert len(prompt.split()) == 3
    assert set(prompt.split()) <= set(words)
    assert tiny_model.pipe.tokenizer.decode(ids, skip_special_tokens=True).split() == prompt.split()


def test_tokens_encode_as_their_prompt_does(tiny_model):
    """The differentiable path gives the bits of `encode`, and its gradient agrees with finite differences."""
    usual = tiny_model.encode(["a green bicycle", "an owl on a fence"])
    inputs = tiny_model.token_table[usual.ids].requires_grad_()
    found = tiny_model.encode_tokens(usual.ids, inputs)
    assert torch.equal(found.embeds, usual.embeds)

    weight = torch.randn(usual.embeds.shape, generator=torch.Generator().manual_seed(0))
    (slope,) = torch.autograd.grad((found.embeds * weight).sum(), inputs)
    step = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(1)) * inputs.detach().std() / 100
    with torch.no_grad():
        up, down = (tiny_model.encode_tokens(usual.ids, inputs + s * step).embeds for s in (1, -1))
        change = ((up - down) * weight).sum() / 2
    assert change.item() == pytest.approx((slope * step).sum().item(), rel=1e-2)
    assert torch.equal(tiny_model.encode(["a green bicycle"]).embeds, usual.embeds[:1])
