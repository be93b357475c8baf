"""What a run's record says of pictures, edits and tuned models: what they hold, wherever they lie."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from unmemorize.core.errors import UserError
from unmemorize.metrics.similarity import References
from unmemorize.mitigate.edit import EditFile
from unmemorize.mitigate.tuned import Tuned
from unmemorize.stages.mitigations import sources_of


def pictures():
    pixels = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).reshape(2, 3, 4, 4)
    return References(("a.png", "b.png"), pixels, ((0, 0, 2, 2), None), ("one", None))


def test_pictures_are_known_by_what_they_hold():
    """A pixel, a name, a box or a caption more or less is other pictures; the folder is not."""
    same = pictures()
    changed = same.pixels.clone()
    changed[1, 2, 3, 3] += 1
    others = [
        replace(same, pixels=changed),
        replace(same, names=("a.png", "c.png")),
        replace(same, masks=((0, 0, 2, 3), None)),
        replace(same, captions=("one", "two")),
        same[[1, 0]],
        same[[0]],
    ]
    assert len({other.digest for other in [same, *others]}) == 7
    here, there = same.source("here"), pictures().source("there")
    assert (here.sha256, here.count) == (there.sha256, 2)
    assert here.source == "here"


def test_edits_and_tuned_models_are_known_by_what_they_hold(tmp_path):
    """An edit's file by its bytes, a tuned model by its fingerprint; a method has no file."""
    path = tmp_path / "edit.safetensors"
    path.write_bytes(b"one")
    tuned = Tuned("folder", "f" * 64, {})
    first = sources_of({"edit": EditFile(path=str(path)), "mitigation": tuned, "nothing": object()})
    assert first.keys() == {"edit", "mitigation"}
    assert first["mitigation"].sha256 == "f" * 64
    path.write_bytes(b"two")
    assert sources_of({"edit": EditFile(path=str(path))})["edit"].sha256 != first["edit"].sha256
    path.unlink()
    with pytest.raises(UserError, match="no such file"):
        sources_of({"edit": EditFile(path=str(path))})
