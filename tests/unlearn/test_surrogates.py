"""Surrogates: the first pictures that are no copies, or a line that names the prompt."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext

import pytest
import torch

from unmemorize.core.errors import UserError
from unmemorize.core.methods import Subject
from unmemorize.core.results import Surrogates
from unmemorize.core.sample import Sampler, generate
from unmemorize.unlearn.denoising import Rows, stream
from unmemorize.unlearn.surrogates import draw_surrogates, make_surrogates

HOW = Sampler(8, 1.0)


def copies_of(oracle, index):
    """Whether pictures are the oracle's picture of that number."""
    target = oracle.decode(oracle.denoiser.images[index])
    return lambda images, number: [bool((image - target).square().mean().sqrt() < 0.1) for image in images]


def shown(oracle, found):
    """The number of the oracle's picture that each surrogate is."""
    return torch.cdist(found.latents.flatten(1), oracle.denoiser.images.flatten(1)).argmin(1).tolist()


def test_copies_are_left_out(oracle):
    """A prompt that stands for two pictures, one of them memorized: all surrogates are the other one."""
    found = make_surrogates(["pair"], copies_of(oracle, 1), mitigated=[nullcontext(Subject(oracle, HOW))], count=3)
    assert shown(oracle, found) == [2, 2, 2]


def test_each_prompt_is_judged_by_its_own_picture(oracle):
    """A copy of another prompt's picture is none of this one's."""
    targets = [oracle.decode(oracle.denoiser.images[k]) for k in (1, 2)]

    def is_copy(images, number):
        return [bool((image - targets[number]).square().mean().sqrt() < 0.1) for image in images]

    found = make_surrogates(["pair", "pair"], is_copy, mitigated=[nullcontext(Subject(oracle, HOW))], count=3)
    assert shown(oracle, found) == [2, 2, 2, 1, 1, 1]


def test_they_are_the_first_seeds_s(oracle):
    """Nothing is a copy: seeds 0, 1 and 2 of each prompt, in order."""
    found = make_surrogates(
        ["pair", "all"], lambda x, number: [False] * len(x), mitigated=[nullcontext(Subject(oracle, HOW))], count=3
    )
    assert found.stands_for.tolist() == [0, 0, 0, 1, 1, 1]
    expected = generate(oracle, oracle.encode(["all"] * 3), seeds=[0, 1, 2], sampler=HOW)
    assert torch.allclose(oracle.decode(found.latents[3:]), expected, atol=1e-6)


def test_a_generator_that_still_copies_is_named(oracle):
    """A prompt that stands for the memorized picture alone."""
    with pytest.raises(UserError, match=r"memorized picture of 'one': fewer than 2 of 8 .* --mitigation"):
        make_surrogates(["pair", "one"], copies_of(oracle, 0), mitigated=[nullcontext(Subject(oracle, HOW))], count=2)


def test_a_prompt_that_still_copies_gets_a_stronger_mitigation(oracle):
    """And only that one: the other's surrogates are the weaker mitigation's."""
    entered = []

    @contextmanager
    def block(name):
        entered.append(name)
        before = dict(oracle._prompts)
        oracle._prompts["one"] = [0] if name == "weak" else [4]
        oracle._prompts["pair"] = [1] if name == "weak" else [5]
        yield Subject(oracle, HOW)
        oracle._prompts = before

    blocks = (block(name) for name in ("weak", "strong", "never"))
    found = make_surrogates(["pair", "one"], copies_of(oracle, 0), mitigated=blocks, count=2)
    assert entered == ["weak", "strong"]
    assert shown(oracle, found) == [1, 1, 4, 4]


def test_each_row_gets_a_surrogate_of_its_picture():
    """By its own stream; over many rows every surrogate of a picture is shown."""
    surrogates = Surrogates(torch.arange(5.0).reshape(5, 1, 1, 1), torch.tensor([0, 0, 0, 1, 1]))
    rows = Rows(torch.tensor([0, 1] * 30), [stream(0, k) for k in range(60)])
    shown = draw_surrogates(surrogates, rows)[:, 0, 0, 0]
    assert set(shown[::2].tolist()) == {0.0, 1.0, 2.0}
    assert set(shown[1::2].tolist()) == {3.0, 4.0}
    assert surrogates.pictures == 2
