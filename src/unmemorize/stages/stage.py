"""What a stage is, what it costs, and how a plan of stages runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from unmemorize.core.errors import NotApplicable
from unmemorize.core.run import Progress, Run
from unmemorize.stages.inputs import Inputs, NotRun

COPIED = 3  # a forecast takes one in so many prompts to give a copy


@dataclass(frozen=True)
class Cost:
    """Denoiser evaluations, those among them with a gradient, and pictures decoded."""

    evaluations: int = 0
    gradients: int = 0
    pictures: int = 0


@dataclass(frozen=True)
class Stage:
    """A step of a plan: `work` writes `scores/TABLE.parquet`, which is there once the stage is done.

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


def run_stages(stages: Sequence[Stage], inputs: Inputs, run: Run, progress: Progress) -> list[dict[str, str]]:
    """Run those that are not done, in order; returns what became of each."""
    states = []
    for stage in stages:
        state, reason = "done", ""
        try:
            if not stage.done(run.folder):
                with run.timed(stage.name):
                    stage.work(inputs, run.folder, progress)
        except NotApplicable as error:
            state, reason = "not applicable", str(error)
        except NotRun as error:
            state, reason = "not run", str(error)
        states.append({"name": stage.name, "state": state, "reason": reason})
    return states
