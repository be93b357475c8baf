"""SSIM against torchmetrics and against its formula."""

from __future__ import annotations

import pytest
import torch

from unmemorize.metrics.ssim import Scales, pairwise_ssim, scales_for, ssim


def pictures(n, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    a = torch.rand(n, 4, size, size, generator=generator)
    mix = torch.linspace(0, 1, n)[:, None, None, None]
    return a, mix * a + (1 - mix) * torch.rand(n, 4, size, size, generator=generator)


@pytest.fixture(scope="module")
def torchmetrics():
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchmetrics.functional.image import ssim as module
    return module


@pytest.mark.parametrize("size", [44, 64])
def test_three_scales_are_those_of_torchmetrics(torchmetrics, size):
    """Multi-scale SSIM of large latents, one pair at a time, at the fixed data range."""
    a, b = pictures(5, size)
    found = ssim(a, b, scales_for(size, size))
    for i in range(5):
        theirs = torchmetrics.multiscale_structural_similarity_index_measure(
            a[i : i + 1], b[i : i + 1], data_range=1.0, betas=(0.33, 0.33, 0.33), normalize="relu"
        )
        assert found[i].item() == pytest.approx(theirs.item(), abs=1e-4)


def test_one_scale_is_that_of_torchmetrics(torchmetrics):
    """Small latents have plain SSIM."""
    a, b = pictures(5, 16)
    for i in range(5):
        theirs = torchmetrics.structural_similarity_index_measure(a[i : i + 1], b[i : i + 1], data_range=1.0)
        assert ssim(a, b, scales_for(16, 16))[i].item() == pytest.approx(max(theirs.item(), 0), abs=1e-4)


def test_two_pixels_by_hand():
    """A window of one pixel: luminance (2ab + K1²) / (a² + b² + K1²), and no contrast to compare."""
    a, b = torch.full((1, 1, 2, 2), 0.2), torch.full((1, 1, 2, 2), 0.6)
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    assert ssim(a, b, Scales(1, 1)).item() == pytest.approx(expected, rel=1e-5)


def test_a_pair_does_not_depend_on_the_others(tmp_path):
    """Scaling is fixed: a value is the same alone, among others, and in the table of pairs."""
    a, b = pictures(4, 32)
    scales = scales_for(32, 32)
    together = ssim(a, b, scales)
    assert torch.allclose(together, torch.cat([ssim(a[i : i + 1], b[i : i + 1], scales) for i in range(4)]), atol=1e-6)
    table = pairwise_ssim(a, scales)
    assert torch.equal(table, table.T)
    assert torch.equal(table.diagonal(), torch.full((4,), -1.0))
    assert table[1, 2].item() == pytest.approx(ssim(a[1:2], a[2:3], scales).item(), abs=1e-6)


def test_equal_pictures_are_alike():
    """Also where a channel is flat."""
    a, _ = pictures(2, 64)
    a[0, 0] = 0
    assert torch.allclose(ssim(a, a, scales_for(64, 64)), torch.ones(2), atol=1e-5)


@pytest.mark.parametrize(
    ("size", "scales"),
    [(64, (3, 11)), (44, (3, 11)), (43, (2, 11)), (32, (2, 11)), (16, (1, 11)), (8, (1, 7)), (1, (1, 1))],
)
def test_small_latents_have_fewer_scales_and_smaller_windows(size, scales):
    """The window has to fit into the coarsest scale."""
    assert scales_for(size, 64) == Scales(*scales)
    assert ssim(*pictures(2, size), scales_for(size, size)).shape == (2,)
