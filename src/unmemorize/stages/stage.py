"""What a stage is, how its work is cut into shards, what it costs, and how a plan of stages runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import pyarrow as pa

from unmemorize.core.errors import NotApplicable
from unmemorize.core.run import Progress, Run, quiet
from unmemorize.core.shards import WHOLE, Part, Rows, Shards, merge_shards, run_shards
from unmemorize.core.specs import OfModel
from unmemorize.stages.inputs import Inputs, NotRun

COPIED = 3  # a forecast takes one in so many prompts to give a copy

Item = TypeVar("Item")


@dataclass(frozen=True)
class Work(Generic[Item]):
    """The work of a stage with everything that its shards need, such as a loaded model.

    Attributes:
        name: What it is called: the folder of its shards, and in progress.
        table: The file in the run directory that the rows end in.
        items: What it is done on.
        do: Rows of some of the items: the same whichever process does them, and whichever others there are.
        size: Items a shard.
        in_order: Whether a shard needs those before it.
    """

    name: str
    table: str
    items: Sequence[Item]
    do: Callable[[Sequence[Item]], Rows]
    size: int
    in_order: bool = False

    def run(self, run: Path, progress: Progress, part: Part = WHOLE) -> pa.Table:
        """Do the part's shards that are not done, and join all shards in the table.

        Raises:
            Unfinished: Shards of other parts are not there yet.
        """
        folder = run / "shards" / self.name
        for done in run_shards(self.items, self.do, folder=folder, size=self.size, part=part, in_order=self.in_order):
            progress(self.name, done, len(self.items))
        Shards.of(folder, len(self.items), self.size).require_all(part)
        return merge_shards(folder, run / self.table)


Opening = Callable[[Inputs, Path, Progress], Work[Any]]


@dataclass(frozen=True)
class Task:
    """The work of a stage as settings alone, which another process opens on a device of its own.

    Attributes:
        spec: The command's settings.
        run: The run directory, whose record is there.
        opening: The stage's function that opens its work.
    """

    spec: OfModel
    run: Path
    opening: Opening

    def open(self, device: str = "") -> Work[Any]:
        """The work, with a model on that device; on the one that the settings name by default.

        Raises:
            UserError: The model or the data cannot be used.
        """
        spec: Any = self.spec
        inputs = Inputs.of(replace(spec, device=device or spec.device))
        return self.opening(inputs, self.run, quiet)


@dataclass(frozen=True)
class Cost:
    """Denoiser evaluations, those among them with a gradient, and pictures decoded."""

    evaluations: int = 0
    gradients: int = 0
    pictures: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.evaluations + other.evaluations, self.gradients + other.gradients, self.pictures + other.pictures
        )

    def __mul__(self, times: int) -> Cost:
        return Cost(self.evaluations * times, self.gradients * times, self.pictures * times)


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


def in_shards(opening: Opening) -> Callable[[Inputs, Path, Progress], None]:
    """A stage's `work`: open it, then do it shard by shard."""

    def work(inputs: Inputs, run: Path, progress: Progress) -> None:
        opening(inputs, run, progress).run(run, progress)

    return work


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
