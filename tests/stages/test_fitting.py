"""Mitigations of an audit are made once: what was measured for the first stage is read by the next."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from unmemorize.core.methods import Subject
from unmemorize.core.run import quiet
from unmemorize.core.sample import Sampler
from unmemorize.stages.inputs import Ordinary
from unmemorize.stages.mitigate import Fitting


@pytest.fixture
def fitting(tiny_model, tmp_path):
    prompts = [SimpleNamespace(id=f"p{i}", text=f"a thing number {i}") for i in range(6)]
    inputs = SimpleNamespace(
        model=tiny_model,
        subject=Subject(tiny_model, Sampler(2, 3.0)),
        prompts=prompts,
        ordinary=Ordinary(tuple(range(6)), ()),
        spec=SimpleNamespace(numbers=(0, 1)),
        bundle=SimpleNamespace(has=lambda option: option == "ordinary"),
    )
    return Fitting(inputs, tmp_path, ("a thing number 0",), quiet)


def test_a_guard_is_fitted_once_a_run(tiny_model, fitting):
    """The second time its limits are read back, the very same numbers, and nothing is measured."""
    with tiny_model.counted() as first:
        guard, spent = fitting.fitted("guard", "guard:iterations=3")
    assert first.forward == spent > 0
    assert guard.threshold > guard.target > 0
    with tiny_model.counted() as again:
        assert fitting.fitted("guard", "guard:iterations=3") == (guard, spent)
    assert again.forward == 0


def test_an_edit_is_made_once_a_run(tiny_model, fitting):
    """It is read from the file that `unmemorize apply` takes."""
    edit, spent = fitting.fitted("wanda", "wanda:sparsity=0.2")
    with tiny_model.counted() as again:
        same, recorded = fitting.fitted("wanda", "wanda:sparsity=0.2")
    assert again.forward == 0
    assert recorded == spent > 0
    assert same.weights.keys() == edit.weights.keys()
    assert all(torch.equal(same.weights[name], mask) for name, mask in edit.weights.items())


def test_what_measures_nothing_leaves_nothing(fitting, tmp_path):
    """A mitigation whose settings are all given is no file of the run."""
    fitting.fitted("guard", "guard:threshold=2,target=1")
    assert not list(tmp_path.iterdir())
