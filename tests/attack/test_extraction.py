"""Attacks of many pictures with generation and judgement: on a model that knows its pictures, and batch by batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unmemorize.attack.dori import Dori
from unmemorize.attack.extraction import Trial, extraction, starts
from unmemorize.core.errors import UserError
from unmemorize.core.methods import Subject
from unmemorize.core.model import Condition
from unmemorize.core.results import Found
from unmemorize.core.sample import Sampler, generate
from unmemorize.metrics.similarity import References, match_targets, with_mirrored
from unmemorize.study.extracted import from_rows, to_rows

QUICK = Dori(updates=2, batch=2)
SHORT = Trial(curve=(0, 1, 2), restarts=2, seeds=(100, 101))
TWO = Sampler(2)


def references(images, captions):
    return References(tuple(f"{i}.png" for i in range(len(images))), images, (None,) * len(images), tuple(captions))


def judge(images, targets):
    """Against the own target, among unrelated pictures."""
    others = torch.rand(20, 3, *images.shape[-2:], generator=torch.Generator().manual_seed(5))
    return match_targets(images, targets, references(others, [None] * 20))


@pytest.fixture
def three(tiny_model):
    """Three pictures with prompts."""
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    return references(images, ["one", "two", "three"])


def test_stored_pictures_come_back_and_others_do_not(oracle):
    """From a prompt that favours no picture: the stored ones within the attack, the one that is not stored never."""
    stored = oracle.decode(oracle.denoiser.images[[1, 4]]).float()
    other = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(11))
    targets = references(torch.cat([stored, other]), ["x", "y", "z"])
    how = Trial(curve=(0, 300), seeds=(100, 101))
    subject = Subject(oracle, Sampler(20, 1.0))
    found, evidence = extraction(subject, targets, Dori(updates=300), judge, how)
    assert found.copied[:2, 0, 1].all()
    assert not found.copied[2].any()
    assert (evidence.attacked[:2] - stored).abs().max() < 0.15
    assert found.evaluations == 300 * 8
    assert found.spent == [0, 2400]


def test_pictures_do_not_depend_on_those_attacked_with_them(tiny_model, three):
    """One at a time or all at once: the same embeddings and judgements, from prompts and from N(0, I)."""
    for init in ("prompt", "random"):
        how = Trial(SHORT.curve, init, SHORT.restarts, SHORT.seeds)
        together, seen = extraction(Subject(tiny_model, TWO), three, QUICK, judge, how)
        for i in range(3):
            alone, shown = extraction(Subject(tiny_model, TWO), three[[i]], QUICK, judge, how)
            # Adam moves by 0.1 whatever the gradient's size: where that is near zero, rounding shows.
            assert torch.allclose(seen.embeds[i], shown.embeds[0], atol=1e-3)
            assert np.allclose(together.values[i], alone.values[0], atol=1e-3)
            assert np.allclose(together.moved[i], alone.moved[0], rtol=1e-3)


def test_shapes_and_what_the_prompt_itself_gives(tiny_model, three):
    """At no update an attack from the prompt is the prompt; the last embedding gives the picture that is shown."""
    found, evidence = extraction(Subject(tiny_model, TWO), three, QUICK, judge, SHORT)
    assert found.values.shape == found.verdicts.shape == (3, 2, 3, 2)
    assert found.moved.shape == (3, 2, 3)
    assert found.start.shape == (3, 2)
    for restart in range(2):
        assert np.array_equal(found.values[:, restart, 0], found.original_values)
    assert np.allclose(found.moved[:, :, 0], 0)
    assert (found.moved[:, :, 1:] > 0).all()
    embeds = tiny_model.encode(["one"]).embeds
    assert found.start[0, 0] == pytest.approx(embeds.norm().item(), rel=1e-5)
    made = generate(tiny_model, Condition(evidence.embeds[:1, 0]), seeds=[100], sampler=TWO)
    assert torch.allclose(made[0], evidence.attacked[0], atol=1e-3)


def test_copies_of_mirror_images_are_said_to_be_mirrored(oracle):
    """In the numbers and in their rows: a prompt gives the mirror image of its target, another the target itself."""
    stored = oracle.decode(oracle.denoiser.images[[0, 3]]).float()
    targets = references(torch.stack([stored[0].flip(-1), stored[1]]), ["one", "other"])

    def judge_mirrored(images, own):
        return with_mirrored(images, lambda pictures, rows: judge(pictures, own[rows]))

    subject, trial = Subject(oracle, Sampler(20, 1.0)), Trial(curve=(0, 1), seeds=(100,))
    found, _ = extraction(subject, targets, Dori(updates=1), judge_mirrored, trial)
    assert found.copied[:, 0, 0, 0].all()
    assert found.mirrored[:, 0, 0, 0].tolist() == found.original_mirrored[:, 0].tolist() == [True, False]
    rows = to_rows(found, [{"id": "a"}, {"id": "b"}])
    assert [row["mirrored"] for row in rows if row["step"] == 0] == [True, False]
    read = from_rows(rows)
    assert np.array_equal(read.mirrored, found.mirrored)
    assert np.array_equal(read.original_mirrored, found.original_mirrored)


def test_starts_differ_between_pictures_and_restarts_and_are_standard_normal(tiny_model, three):
    """N(0, I) of the embedding's shape, drawn again for each picture and restart, the same every time."""
    first, second = (starts(tiny_model, three, "random", restart).embeds for restart in (0, 1))
    assert torch.equal(first, starts(tiny_model, three, "random", 0).embeds)
    together = torch.stack([*first, *second])
    assert len(torch.unique(together.flatten(1)[:, 0])) == 6
    assert together.mean().abs() < 0.1
    assert together.std() == pytest.approx(1, abs=0.1)
    ordinary = starts(tiny_model, three, "ordinary", 0, ["an owl", "a kite"])
    pool = tiny_model.encode(["an owl", "a kite"]).embeds
    assert all(any(torch.allclose(row, other, atol=1e-5) for other in pool) for row in ordinary.embeds)


def test_a_picture_without_a_prompt(tiny_model, three):
    """It cannot be started from, and the message says which and what to do; from elsewhere it has no original rate."""
    unknown = References(three.names, three.images, three.masks, ("one", None, "three"))
    with pytest.raises(UserError, match=r"1\.png: its prompt is not known.*--init random"):
        extraction(Subject(tiny_model, TWO), unknown, QUICK, judge, SHORT)
    found, _ = extraction(Subject(tiny_model, TWO), unknown, QUICK, judge, Trial((0, 2), "random", seeds=(100,)))
    assert np.isnan(found.original_values).ravel().tolist() == [False, True, False]


def test_a_search_of_some_positions_starts_elsewhere_than_the_prompt(tiny_model, three):
    """Its first pictures and distances are those of its own start, not the prompt's."""
    found, _ = extraction(Subject(tiny_model, TWO), three, Dori(updates=2, batch=2, tokens=1), judge, SHORT)
    assert not np.array_equal(found.values[:, 0, 0], found.original_values)
    assert np.allclose(found.moved[:, :, 0], 0)


def test_what_is_found_may_be_longer_than_where_it_started(tiny_model, three):
    """As from starts of which the longest sets the length: the distance is over all of it."""

    class Longer(Dori):
        def attack(self, subject, latents, start, *, seeds, keep=(), rows=16):
            found = super().attack(subject, latents, start, seeds=seeds, keep=keep, rows=rows)
            last = torch.nn.functional.pad(found.last.embeds, (0, 0, 0, 2), value=1.0)
            return Found({0: start, self.updates: Condition(last)}, found.losses, found.evaluations)

    found, _ = extraction(Subject(tiny_model, TWO), three, Longer(updates=2, batch=2), judge, SHORT)
    width = tiny_model.encode(["one"]).embeds.shape[-1]
    assert found.steps == (0, 2)
    assert (found.moved[:, :, 1] ** 2 >= 2 * width).all()
