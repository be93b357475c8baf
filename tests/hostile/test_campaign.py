"""Hostile inputs by kind: each is read, or refused in a line, within its time, and leaves nothing behind."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from random import Random

import pytest

from hostile import others, sources
from hostile.judge import violation
from hostile.resumes import Finished, resumes
from made_up_run import make_run

# Shares of all inputs: those that take long are fewer.
SHARES = {
    "pictures": 0.14,
    "prompts": 0.12,
    "folders": 0.13,
    "archives": 0.13,
    "runs": 0.04,
    "resumes": 0.01,
    "models": 0.05,
    "edits": 0.02,
    "additions": 0.02,
    "method_settings": 0.04,
    "criteria": 0.02,
    "labels": 0.04,
    "masks": 0.04,
    "arguments": 0.05,
    "outputs": 0.05,
    "texts": 0.1,
}


@pytest.fixture(scope="session")
def audited(tmp_path_factory):
    """An audit's run."""
    return make_run(tmp_path_factory.mktemp("audited") / "run", prompts=12, size=8)


@pytest.fixture(scope="session")
def finished(tmp_path_factory, tiny_folder):
    """A run of every command."""
    return Finished(tiny_folder, tmp_path_factory.mktemp("finished"))


@pytest.fixture
def make(request, audited, finished, tiny_folder):
    """What makes an input of the kind, by its name."""
    if request.param == "resumes":
        return partial(resumes, finished)
    of_model = dict.fromkeys(("models", "edits", "additions", "method_settings"), tiny_folder)
    sound = ({"runs": audited} | of_model).get(request.param)
    if sound is not None:
        return partial(getattr(others, request.param), sound)
    return getattr(sources, request.param, None) or getattr(others, request.param)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("make", SHARES, indirect=True)
def test_nothing_breaks_it(make, request, tmp_path, capfd):
    """Every input of a kind is read, or refused in one line."""
    kind, seed = request.node.callspec.id, request.config.getoption("hostile_seed")
    count = round(request.config.getoption("hostile") * SHARES[kind])
    wrong = []
    for number in range(count):
        folder = Path(tmp_path, f"{number}")
        folder.mkdir()
        given = make(Random(f"{seed}-{kind}-{number}"), folder)
        if said := violation(given, folder, lambda: "".join(capfd.readouterr())):
            wrong.append(f"{kind} {number} ({given.name[:200]}): {said}")
        shutil.rmtree(folder, ignore_errors=True)
    assert not wrong, f"{len(wrong)} of {count}:\n" + "\n".join(wrong[:60])
