"""Run directories that were made up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from made_up_run import HOSTILE, make_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A small finished run."""
    return make_run(tmp_path / "run", prompts=40)


@pytest.fixture(scope="session")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the size of the testbed: read it, do not change it."""
    return make_run(tmp_path_factory.mktemp("full") / "run")


@pytest.fixture
def make() -> Callable[..., Path]:
    """The generator itself, for runs of other sizes."""
    return make_run


@pytest.fixture
def hostile() -> list[str]:
    """Prompts that are in every run."""
    return HOSTILE
