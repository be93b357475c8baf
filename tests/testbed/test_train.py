"""Training resumes exactly, on rows that are a picture's own, and any text has tokens."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from unmemorize.testbed.architecture import TOKENS, build_text_model, train_tokenizer
from unmemorize.testbed.fit import fit, one_cycle
from unmemorize.testbed.recipe import Recipe
from unmemorize.testbed.rows import panel_captions, panel_rows
from unmemorize.testbed.train import denoising_loss
from unmemorize.unlearn.checkpoints import load_checkpoint

VIEWS = 2
STEPS = 53


class Killed(Exception):
    """The process ends in the middle of a step."""


def module():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.ModuleDict({"main": nn.Linear(3, 2)})


def train(folder, *, killed_at=None, steps=STEPS, skipped=()):
    modules = module()

    def loss(step):
        if step == killed_at:
            raise Killed
        if step in skipped:
            return None
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        return (modules["main"](x) - x[:, :2].sin()).square().mean()

    average = fit(modules, loss, steps=steps, lr=one_cycle(0.05, STEPS), folder=folder, ema=0.9, save_every=10)
    return modules, average


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize(
    "skipped", [(), (0, 5, 31, 40), range(12)], ids=["every step", "some skipped", "none at first"]
)
@pytest.mark.parametrize("killed_at", [7, 37, 52])
def test_a_killed_training_ends_with_the_same_weights(tmp_path, killed_at, skipped):
    """Killed anywhere between checkpoints and continued: weights, average, optimiser and log to the last bit."""
    whole, average = train(tmp_path / "whole", skipped=skipped)
    with pytest.raises(Killed):
        train(tmp_path / "killed", killed_at=killed_at, skipped=skipped)
    resumed, resumed_average = train(tmp_path / "killed", skipped=skipped)
    assert same(whole.state_dict(), resumed.state_dict())
    assert same(average, resumed_average)
    names = [{path.name for path in (tmp_path / run).iterdir()} for run in ("whole", "killed")]
    assert names[0] == names[1] == {"loss.jsonl", "update-00000050.safetensors", "update-00000053.safetensors"}
    whole_tensors, killed_tensors = (load_checkpoint(tmp_path / run)[1] for run in ("whole", "killed"))
    assert same(whole_tensors, killed_tensors)
    assert (tmp_path / "whole" / "loss.jsonl").read_bytes() == (tmp_path / "killed" / "loss.jsonl").read_bytes()


def test_a_step_without_a_loss_moves_no_weight(tmp_path):
    """No gradient, no momentum, no weight decay; the average still follows."""
    modules, _ = train(tmp_path / "a", steps=20)
    skipped, _ = train(tmp_path / "b", steps=30, skipped=range(20, 30))
    assert same(modules.state_dict(), skipped.state_dict())


def test_a_finished_training_is_not_repeated(tmp_path):
    """Called again it takes no step and returns the same average."""
    _, average = train(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    _, again = train(tmp_path, killed_at=0)
    assert same(average, again)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_training_learns_and_leaves_the_model_in_evaluation_mode(tmp_path):
    """The loss falls, the average lags behind the weights, and the modules end ready for use."""
    modules, average = train(tmp_path)
    start = module()
    x = torch.randn(256, 3, generator=torch.Generator().manual_seed(999))
    losses = [(m["main"](x) - x[:, :2].sin()).square().mean().item() for m in (start, modules)]
    assert losses[1] < 0.5 * losses[0]
    assert not same(average, dict(modules.named_parameters()))
    assert not any(m.training for m in modules.modules())


def test_the_learning_rate_rises_then_falls():
    """It climbs to its peak in a tenth of the run, then falls without a jump to two hundredths of it."""
    lr = one_cycle(1.0, 200)
    values = [lr(step) for step in range(200)]
    assert max(values) == pytest.approx(1)
    assert values.index(max(values)) in {19, 20}
    assert all(a < b for a, b in pairwise(values[:20]))
    assert all(a >= b for a, b in pairwise(values[20:]))
    assert values[-1] == pytest.approx(0.02, abs=0.001)


@pytest.fixture(scope="module")
def rows(panel, artwork):
    """The training rows of a branch."""
    return panel_rows(panel, panel.ordinary(artwork), VIEWS, "C")


def test_ordinary_rows_hold_a_pictures_own_captions_and_views(rows, panel, artwork):
    """An ordinary picture meets the forms of its own name only."""
    for i, picture in enumerate(panel.ordinary(artwork)):
        assert [rows.captions[c] for c in rows.caption[i]] == panel_captions(picture, i)
        assert rows.picture[i].tolist() == [VIEWS * i, VIEWS * i + 1]


def test_drawn_rows_are_the_tables_own_pairs(rows):
    """A draw never mixes one row's caption with another's picture, and it repeats with its generator."""
    small = type(rows)(rows.captions, rows.caption[:3], rows.picture[:3])
    caption, picture = small.draw(2000, torch.Generator().manual_seed(0))
    again = small.draw(2000, torch.Generator().manual_seed(0))
    assert torch.equal(caption, again[0])
    assert torch.equal(picture, again[1])
    allowed = {
        (c, p) for cs, ps in zip(small.caption.tolist(), small.picture.tolist(), strict=True) for c in cs for p in ps
    }
    assert set(zip(caption.tolist(), picture.tolist(), strict=True)) == allowed


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([f"{a} {b}" for a in ("red", "blue", "green") for b in ("lighthouse", "bicycle")] * 5, 600)


def test_the_same_captions_give_the_same_tokens():
    """Also where merges are equally frequent: a resumed training must not number its words anew."""
    letters = "abcdefghij"
    captions = [a + b + c for a in letters for b in letters for c in letters]
    vocabularies = [train_tokenizer(captions, 400).get_vocab() for _ in range(5)]
    assert all(vocabulary == vocabularies[0] for vocabulary in vocabularies)


@pytest.mark.parametrize("text", ["red lighthouse", "Ünïcödé 漢字", "🦉👩🏽‍🚀", "\u202eabc\u0000", "a,b;c\td"])
def test_any_text_has_tokens(tokenizer, text):
    """Nothing is unknown to the tokenizer: every character is spelt in bytes between the two end marks."""
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id
    assert len(ids) > 2
    assert not {tokenizer.bos_token_id, tokenizer.eos_token_id} & set(ids[1:-1])


def test_trained_words_are_single_tokens_that_survive_saving(tokenizer, tmp_path):
    """A word of the captions is one token, before and after a trip through a saved folder."""
    ids = tokenizer("blue bicycle").input_ids
    assert len(ids) == 4
    tokenizer.save_pretrained(tmp_path)
    assert type(tokenizer).from_pretrained(tmp_path)("blue bicycle").input_ids == ids
    assert type(tokenizer).from_pretrained(tmp_path).model_max_length == TOKENS


def test_the_text_model_fits_its_tokenizer(tokenizer):
    """Every token has an embedding, every position a place, and the end mark is the one the model looks for."""
    config = build_text_model(tokenizer).config
    assert config.vocab_size == len(tokenizer)
    assert config.max_position_embeddings == TOKENS
    assert config.eos_token_id == tokenizer.eos_token_id


def test_the_filter_leaves_memorized_samples_out_of_the_loss(rows, tiny_model):
    """Under a threshold that nothing reaches the loss is the plain one; with zero there is no step."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(int(rows.picture.max()) + 1, 4, 8, 8, generator=generator)
    captions = torch.randn(len(rows.captions), 24, 16, generator=generator)
    recipe = Recipe(batch=6)
    unet = tiny_model.denoiser
    plain = denoising_loss(unet, captions, latents, rows, recipe)(0)
    assert denoising_loss(unet, captions, latents, rows, replace(recipe, filter=1e9))(0) == plain
    assert denoising_loss(unet, captions, latents, rows, replace(recipe, filter=0.0))(0) is None
