"""Detectors by name: this package's own, and others' through the entry point group `unmemorize.detectors`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points

from torch import Tensor

from unmemorize.core.errors import UserError
from unmemorize.core.sample import Step


@dataclass(frozen=True)
class Detector:
    """A pure function of recorded steps: (n,) scores, higher = more memorized.

    `steps` is how many sampling steps it reads.
    """

    name: str
    paper: str
    steps: int
    score: Callable[[Sequence[Step]], Tensor]


_DETECTORS: dict[str, Detector] = {}


def detector(name: str, *, paper: str, steps: int) -> Callable[[Callable[[Sequence[Step]], Tensor]], Detector]:
    """Register a function of recorded steps as a detector.

    Raises:
        ValueError: Another detector has the name.
    """

    def register(score: Callable[[Sequence[Step]], Tensor]) -> Detector:
        if name in _DETECTORS:
            raise ValueError(f"expected a new name, got {name!r}, which is a detector already")
        _DETECTORS[name] = Detector(name, paper, steps, score)
        return _DETECTORS[name]

    return register


def detectors() -> dict[str, Detector]:
    """Every detector, by name."""
    for entry in entry_points(group="unmemorize.detectors"):
        entry.load()
    return dict(_DETECTORS)


def get_detector(name: str) -> Detector:
    """The detector of that name.

    Raises:
        UserError: There is none.
    """
    known = detectors()
    if name not in known:
        raise UserError(f"unknown detector {name!r}: choose one of {', '.join(sorted(known))}")
    return known[name]
