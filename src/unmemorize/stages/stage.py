"""What a stage is, how its work is cut into shards, what it costs, and how a plan of stages runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, TypeVar

from unmemorize.core.crew import ALONE, WHOLE, Crew, Idle, Part, never
from unmemorize.core.errors import NotApplicable
from unmemorize.core.run import Progress, Run, quiet, require_same_versions
from unmemorize.core.shards import Rows, Shards, merge_shards, run_shards
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

    def share(self, run: Path, part: Part = WHOLE, idle: Idle = never) -> Iterator[int]:
        """Do the part's shards that neither are done nor claimed by others; yields how many items are done."""
        folder, in_order = run / "shards" / self.name, self.in_order
        return run_shards(self.items, self.do, folder=folder, size=self.size, part=part, in_order=in_order, idle=idle)

    def run(self, run: Path, progress: Progress, part: Part = WHOLE, idle: Idle = never) -> Path:
        """Do the part's shards that are not done, and join all shards in the table, whose file is returned.

        Raises:
            Unfinished: Shards of other parts are not there yet.
        """
        for done in self.share(run, part, idle):
            progress(self.name, done, len(self.items))
        folder = run / "shards" / self.name
        Shards.of(folder, len(self.items), self.size).require_all(part)
        merge_shards(folder, run / self.table)
        return run / self.table


Opening = Callable[[Inputs, Path, Progress], Work[Any]]


@dataclass(frozen=True)
class Task:
    """The work of a stage as settings alone, which another process opens on a device of its own.

    Attributes:
        spec: The command's settings.
        run: The run directory, whose record is there.
        opening: The stage's function that opens its work.
        part: The part of its shards that is done.
    """

    spec: OfModel
    run: Path
    opening: Opening
    part: Part = WHOLE

    def open(self, device: str = "") -> Work[Any]:
        """The work, with a model on that device; on the one that the settings name by default.

        Raises:
            UserError: The model or the data cannot be used, or the run was begun with other versions.
        """
        require_same_versions(self.run)
        spec: Any = self.spec
        return self.opening(_inputs(replace(spec, device=device or spec.device)), self.run, quiet)

    def share(self) -> None:
        """Do shards until all of the part are done, by whichever process; what a stage lacks says the one that called.

        Raises:
            UserError: The model or the data cannot be used, or the run was begun with other versions.
        """
        with suppress(NotApplicable, NotRun):
            for _ in self.open().share(self.run, self.part):
                pass


@lru_cache(maxsize=1)  # a worker opens stage after stage of one command
def _inputs(spec: OfModel) -> Inputs:
    return Inputs.of(spec, prompts_first=False)  # the run has them, and a shard needs a few


def run_task(opening: Opening, inputs: Inputs, run: Path, progress: Progress, crew: Crew = ALONE) -> Path:
    """Open a stage's work, do it with a crew, and join its shards in its table, whose file is returned.

    Raises:
        Unfinished: Shards of other parts are not there yet.
    """
    idle = crew.call(Task(inputs.spec, run, opening, crew.part))
    return opening(inputs, run, progress).run(run, progress, crew.part, idle)


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
    work: Callable[[Inputs, Path, Progress, Crew], None]
    cost: Callable[[Inputs], Cost] = lambda inputs: Cost()

    def done(self, run: Path) -> bool:
        """Whether its table is there."""
        return (run / "scores" / f"{self.table}.parquet").exists()

    def finish(self, inputs: Inputs, run: Run, progress: Progress, crew: Crew = ALONE) -> None:
        """Do its work and note the time that it takes, unless its table is there.

        Raises:
            NotApplicable: It says nothing about this model or data.
            NotRun: Something is missing.
        """
        if not self.done(run.folder):
            with run.timed(self.name):
                self.work(inputs, run.folder, progress, crew)


def in_shards(opening: Opening) -> Callable[[Inputs, Path, Progress, Crew], None]:
    """A stage's `work`: open it, then do it shard by shard."""

    def work(inputs: Inputs, run: Path, progress: Progress, crew: Crew) -> None:
        run_task(opening, inputs, run, progress, crew)

    return work


def run_stages(
    stages: Sequence[Stage], inputs: Inputs, run: Run, progress: Progress, crew: Crew = ALONE
) -> list[dict[str, str]]:
    """Run those that are not done, in order; returns what became of each."""
    states = []
    for stage in stages:
        state, reason = "done", ""
        try:
            stage.finish(inputs, run, progress, crew)
        except NotApplicable as error:
            state, reason = "not applicable", str(error)
        except NotRun as error:
            state, reason = "not run", str(error)
        states.append({"name": stage.name, "state": state, "reason": reason})
    return states
