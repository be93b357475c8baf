"""What a mitigation takes from the scores of ordinary prompts."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from unmemorize.core.methods import Subject
from unmemorize.mitigate.guard import Guard

PROMPTS = 25


def test_the_guards_false_alarms_are_those_promised(tiny_model, monkeypatch):
    """Over 400 calibrations a fresh prompt exceeds the threshold with probability 1 / (n + 1)."""
    rng = np.random.default_rng(0)
    monkeypatch.setattr("unmemorize.mitigate.guard.magnitudes", lambda *_: rng.normal(size=PROMPTS).tolist())
    ordinary = tiny_model.encode(["a lighthouse"])
    actual = []
    for _ in range(400):
        fitted = Guard().fitted(Subject(tiny_model), ordinary=ordinary)
        actual.append(norm.sf(fitted.threshold))  # a fresh prompt's score is standard normal
    promised = 1 / (PROMPTS + 1)
    assert np.mean(actual) == pytest.approx(promised, abs=3 * np.std(actual) / 20)
