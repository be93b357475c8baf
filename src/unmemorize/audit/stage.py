"""What a stage of an audit is, what it costs, and how one says that it lacks something."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from unmemorize.core.model import DiffusionModel
from unmemorize.core.run import Progress
from unmemorize.core.specs import AuditSpec

UNSEEN = "no training pictures were given: name their folder with --references"


class NotRun(Exception):
    """A stage lacks what it needs; the message says what to give it."""


@dataclass(frozen=True)
class Cost:
    """Denoiser evaluations, those among them with a gradient, and pictures decoded."""

    evaluations: int = 0
    gradients: int = 0
    pictures: int = 0


@dataclass(frozen=True)
class Stage:
    """A step of the audit: `work` writes `scores/TABLE.parquet`, which is there once the stage is done.

    `work` raises NotApplicable where the stage says nothing about this model or data, and NotRun where something is
    missing. `cost` is what to expect, from the number of prompts.
    """

    name: str
    table: str
    work: Callable[[DiffusionModel, AuditSpec, Path, Progress], None]
    cost: Callable[[DiffusionModel, AuditSpec, int], Cost] = lambda model, spec, prompts: Cost()

    def done(self, run: Path) -> bool:
        """Whether its table is there."""
        return (run / "scores" / f"{self.table}.parquet").exists()
