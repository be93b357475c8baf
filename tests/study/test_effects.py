"""What a change of weights did: pictures of every ordinary prompt at every seed, counted by prompt."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unmemorize.core.methods import Subject
from unmemorize.core.sample import Sampler
from unmemorize.data.pictures import save_image
from unmemorize.data.source import read_references
from unmemorize.metrics.similarity import References
from unmemorize.study.copies import copy_check
from unmemorize.study.effects import Judge, Subjects, measure, quality, vae_features

PROMPTS = ("a lighthouse at dusk", "two red kites over a field", "a green bicycle", "an owl on a fence")


@pytest.fixture
def subjects():
    """One picture with a caption to look at for copies, four ordinary ones in three clusters, two of them near."""
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    names, ones = tuple(f"{k}.png" for k in range(4)), (None,) * 4
    ordinary = References(names, images, ones, PROMPTS)
    return Subjects(ordinary[[0]], ordinary, ("a", "a", "b", "c"), (True, True, False, False))


@pytest.fixture
def judge_with(tiny_model, subjects, tmp_path):
    """A judge with these seeds."""
    for name, image in zip(subjects.ordinary.names, subjects.ordinary.images, strict=True):
        save_image(image, tmp_path / name)
    copies = copy_check(tiny_model, read_references(tmp_path, (32, 32)), "tiny")

    def features(images):
        return vae_features(tiny_model, images)

    def alignment(images, texts):
        return images.mean((1, 2, 3))

    return lambda *seeds: Judge(copies, features, alignment, seeds)


def test_every_ordinary_prompt_is_made_once_a_seed(tiny_model, subjects, judge_with):
    """Prompt by prompt, then all again with other noise."""
    found = measure(Subject(tiny_model, Sampler(2, 7.5)), subjects, judge_with(0, 1, 2))
    assert found["copies"].shape == (1, 3)
    assert len(found["features"]) == len(found["alignment"]) == 12
    assert not torch.equal(found["features"][:4], found["features"][4:8])
    once = measure(Subject(tiny_model, Sampler(2, 7.5)), subjects, judge_with(0))
    assert torch.allclose(once["features"], found["features"][:4], atol=1e-4)


def test_quality_counts_prompts_and_takes_the_mean_of_all_pictures(tiny_model, subjects, judge_with):
    """Neighbours are the same prompts in every round of seeds."""
    judge = judge_with(0, 1, 2)
    before = measure(Subject(tiny_model, Sampler(2, 7.5)), subjects, judge)
    after = before | {"alignment": before["alignment"] * 0.9}
    found = quality(before, after, subjects, judge)
    assert (found["ordinary"]["prompts"], found["neighbours"]["prompts"]) == (4, 2)
    assert found["ordinary"]["kid"]["change"][0] == pytest.approx(0)
    assert found["ordinary"]["alignment"]["change"][0] == pytest.approx(-0.1)
    near = np.tile([True, True, False, False], 3)
    expected = before["alignment"].numpy()[near].mean()
    assert found["neighbours"]["alignment"]["before"][0] == pytest.approx(expected)
