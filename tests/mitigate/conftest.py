"""Closed-form models whose schedules visit the same noise levels in every parameterisation."""

from __future__ import annotations

import pytest
import torch

from closed_forms import SHAPE, Matched, Normals
from unmemorize.models.oracle import FiniteSet


@pytest.fixture
def normals():
    """Makes the model of two Gaussians in a parameterisation."""
    return Normals


@pytest.fixture
def matched():
    """Makes a memorizer of six pictures in a parameterisation, with a schedule of the same log-SNR in each."""
    images = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    return lambda kind: Matched(FiniteSet(images), {"one": [0], "pair": [1, 2]}, kind=kind)
