"""The comparison with training pictures: what is computed once, and where."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from unmemorize.data.pictures import save_image
from unmemorize.data.source import read_references
from unmemorize.study import copies
from unmemorize.study.copies import copy_check


class Elsewhere(Tensor):
    """A tensor on another device: operations with tensors on the CPU are errors, until it is brought there."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is Tensor.cpu:
            return args[0].as_subclass(Tensor)
        flat = [a for arg in args for a in (arg if isinstance(arg, (list, tuple)) else [arg])]
        if any(isinstance(a, Tensor) and not isinstance(a, cls) and a.ndim for a in flat):
            raise RuntimeError("expected all tensors to be on the same device")
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.fixture
def folder(tmp_path):
    """Eight training pictures."""
    for i in range(8):
        save_image(torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(i)), tmp_path / f"{i}.png")
    return tmp_path


def test_pictures_of_a_gpu_are_compared(tiny_model, folder):
    """In half precision and on another device they match as they do on the CPU in single precision."""
    check = copy_check(tiny_model, read_references(folder, (32, 32)), "tiny")
    images = check.references.images[[2, 5]].half()
    there = images.as_subclass(Elsewhere)
    for compared in (check.match(there), check.against(there, check.references[[2, 5]])):
        assert [m.nearest for m in compared] == ["2.png", "5.png"]
        assert [m.verdict for m in compared] == ["verbatim", "verbatim"]
    assert check.match(there) == check.match(images.float())


def test_training_pictures_are_embedded_once(tiny_model, folder, monkeypatch):
    """Each call embeds its own pictures, and only the first the eight training pictures."""
    embedded, devices = [], []

    def load(weights, device):
        devices.append(device)

        def embed(x):
            embedded.append(len(x))
            return torch.nn.functional.normalize(x.flatten(1))

        return embed

    monkeypatch.setattr(copies, "load_sscd", load)
    (folder / "network.pt").write_bytes(b"weights")
    check = copy_check(tiny_model, read_references(folder, (32, 32)), "tiny", str(folder / "network.pt"))
    for _ in range(3):
        (found,) = check.match(check.references.images[4:5])
        assert found.nearest == "4.png"
    assert sum(embedded) == 8 + 3
    assert devices == [tiny_model.device]


def test_training_pictures_are_made_small_once(tiny_model, folder, monkeypatch):
    """Of two calls of one picture the second resizes that picture alone."""
    check = copy_check(tiny_model, read_references(folder, (32, 32)), "tiny")
    image = check.references.images[:1]
    check.match(image)
    resized, resize = [], torch.nn.functional.interpolate
    monkeypatch.setattr(
        torch.nn.functional, "interpolate", lambda x, *a, **k: (resized.append(len(x)), resize(x, *a, **k))[1]
    )
    check.match(image)
    assert resized == [1]
