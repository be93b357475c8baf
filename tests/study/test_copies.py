"""The comparison with training pictures: what is computed once, and where."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from unmemorize.data.pictures import save_image
from unmemorize.data.source import read_references
from unmemorize.metrics.similarity import References
from unmemorize.metrics.tiled import with_error
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
    copies.distances(str(folder / "network.pt"), "sscd-320", tiny_model.device).of_references(check.references)
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


class Large:
    """What a comparison asks of a model that makes pictures of 256 px."""

    image_size = (256, 192)
    device = torch.device("cpu")


def layouts(count, height, width):
    """Smooth coloured pictures, none like its own mirror image."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")


@pytest.fixture
def checks(tiny_model, tmp_path, monkeypatch):
    """A comparison by each criterion with twenty pictures, and how many pictures the network embedded."""
    embedded = []

    def embed(x):
        embedded.append(len(x))
        return torch.nn.functional.normalize(torch.nn.functional.adaptive_avg_pool2d(x, 4).flatten(1))

    monkeypatch.setattr(copies, "load_sscd", lambda weights, device: embed)
    (tmp_path / "network.pt").write_bytes(b"weights")
    names, nothing = tuple(map(str, range(20))), (None,) * 20
    small, large = (References(names, layouts(20, *size), nothing, nothing) for size in ((32, 32), (256, 192)))
    network = str(tmp_path / "network.pt")
    return {
        "l2-ratio": copy_check(tiny_model, small, "tiny"),
        "tiled-ratio": copy_check(Large(), large, "large"),
        "sscd": copy_check(Large(), large, "large", network, "sscd-320"),
    }, embedded


@pytest.mark.parametrize("name", ["l2-ratio", "tiled-ratio", "sscd"])
def test_mirrored_copies_are_found_by_every_criterion_and_said_to_be(checks, name):
    """Of a copy, a mirrored copy and another picture; training pictures and targets are embedded once for both."""
    check, embedded = checks[0][name], checks[1]
    assert check.criterion.name == name
    own = check.references
    other = layouts(21, *own.pixels.shape[2:])[-1:]
    images = torch.cat([own.pixels[[3]], own.pixels[[4]].flip(-1), other.roll(1, dims=1)])
    for compared in (check.match(images), check.against(images, own[[3, 4, 5]])):
        assert [m.nearest for m in compared[:2]] == ["3", "4"]
        assert [m.verdict for m in compared] == ["verbatim", "verbatim", "none"]
        assert [m.mirrored for m in compared] == [False, True, False]
    if name == "sscd":  # of the three pictures two are no copies as they are
        assert sum(embedded) == (20 + 3 + 2) + (3 + 3 + 2)


def test_large_pictures_without_a_network_have_an_error_rate(checks):
    """It is that of the pictures compared with; other criteria have none."""
    check = checks[0]["tiled-ratio"]
    assert check.criterion == with_error(copies.TILED, check.references)
    assert check.criterion.measured_on == 20
    assert 0 <= check.criterion.error <= check.criterion.error_high < 1
    assert "20 training pictures copies of others" in check.criterion.said_of_errors
    assert checks[0]["sscd"].criterion.error is None
