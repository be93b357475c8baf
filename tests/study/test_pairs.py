"""Which ordinary pictures are trained on and which measured."""

from __future__ import annotations

from unmemorize.data.bundle import Bundle
from unmemorize.study.pairs import ordinary_pictures
from unmemorize.testbed.embedded import CONTROLS, own


def test_the_testbed_keeps_ordinary_pictures_alone():
    """Some that it was trained on, others that nothing has seen; no caption is on both sides, and nothing planted."""
    split = ordinary_pictures(Bundle("testbed", {}, own=own("testbed")), (64, 64))
    trained = {path.name for path in CONTROLS.glob("*.png")}
    for pictures in (split.train, split.held_out):
        assert trained.intersection(pictures.names)
        assert not trained.issuperset(pictures.names)
        assert all("ordinary" in name for name in pictures.names)
    assert not set(split.train.captions) & set(split.held_out.captions)


def test_a_model_without_unseen_pictures_keeps_what_it_was_trained_on():
    """The words' model brings ordinary training pictures alone."""
    split = ordinary_pictures(Bundle("testbed-words", {}, own=own("testbed-words")), (64, 64))
    assert len(split.train) == len(split.held_out) == 24
