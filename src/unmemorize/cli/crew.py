"""Who does the work of a command: options that all commands have whose work is cut into shards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

from unmemorize.cli.app import option
from unmemorize.core.bounds import Count
from unmemorize.core.crew import WHOLE, Crew, Part
from unmemorize.launch import launched

Portion = Annotated[
    str, option("Do part I/N of the work alone, counted from 0; auto: as torchrun or SLURM count.", name="--part")
]
Workers = Annotated[Count, option("Processes that share the work, each with a GPU where there are some.")]
Launcher = Annotated[str, option("What starts the workers: local, ray, or ray:address=HOST:PORT of a cluster.")]


@contextmanager
def crew_of(workers: int, launcher: str, part: Part = WHOLE) -> Iterator[Crew]:
    """Start the workers; none outlives the block.

    Raises:
        UserError: There is no such launcher, or its cluster does not answer.
        MissingExtra: Ray is not installed.
    """
    with launched(launcher, workers) as call:
        yield Crew(part, call)
