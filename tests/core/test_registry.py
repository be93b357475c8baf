"""Detectors by name."""

from __future__ import annotations

import pytest
import torch

import unmemorize.detect.noise
from unmemorize.core import registry
from unmemorize.core.errors import UserError
from unmemorize.core.registry import Detector, detector, detectors, get_detector


@pytest.fixture
def own(monkeypatch):
    """A registry of the test's own, so that none of its detectors outlive it."""
    monkeypatch.setattr(registry, "_DETECTORS", dict(registry._DETECTORS))


@pytest.mark.usefixtures("own")
def test_a_registered_function_is_found_with_what_it_says_of_itself():
    """One decorator makes a function a detector, found by name with its paper and its number of steps."""

    @detector("zero", paper="nobody 2000", steps=3)
    def zero(steps):
        return torch.zeros(len(steps[0].x))

    assert get_detector("zero") is zero
    assert (zero.name, zero.paper, zero.steps) == ("zero", "nobody 2000", 3)
    assert "zero" in detectors()


def test_an_unknown_detector_names_the_known_ones():
    """A misspelt name is one line with the names there are."""
    with pytest.raises(UserError, match=r"unknown detector 'noise_gap': choose one of .*noise-gap"):
        get_detector("noise_gap")


def test_the_table_handed_out_is_a_copy():
    """Emptying what `detectors()` returned does not unregister anything."""
    detectors().clear()
    assert get_detector("noise-gap") is unmemorize.detect.noise.noise_gap


@pytest.mark.usefixtures("own")
def test_entry_points_of_other_packages_are_loaded(monkeypatch):
    """A detector that another package announces as an entry point is there without importing it by hand."""

    class Entry:
        def load(self):
            registry._DETECTORS["foreign"] = Detector("foreign", "", 1, len)

    monkeypatch.setattr(registry, "entry_points", lambda group: [Entry()] if group == "unmemorize.detectors" else [])
    assert get_detector("foreign").name == "foreign"
