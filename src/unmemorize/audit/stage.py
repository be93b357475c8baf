"""What a stage of an audit is, and what it costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from unmemorize.audit.inputs import Inputs
from unmemorize.core.run import Progress


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
    missing. `cost` is what to expect.
    """

    name: str
    table: str
    work: Callable[[Inputs, Path, Progress], None]
    cost: Callable[[Inputs], Cost] = lambda inputs: Cost()

    def done(self, run: Path) -> bool:
        """Whether its table is there."""
        return (run / "scores" / f"{self.table}.parquet").exists()
