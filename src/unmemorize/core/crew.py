"""Who does a command's shards: this process, all of them or a part, and other processes that are called."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from unmemorize.core.errors import UserError

LONGEST = 9  # digits of a count


@dataclass(frozen=True)
class Part:
    """Part `index`, from 0, of `of` parts of some work."""

    index: int = 0
    of: int = 1

    def __post_init__(self) -> None:
        """Refuse a part that there is not."""
        if not 0 <= self.index < self.of:
            raise UserError(f"part {self.index}/{self.of}: parts are counted from 0: name one from 0/{self.of}")

    def shards(self, count: int) -> range:
        """The numbers of the shards, of `count`, that are this part: a range, as long as any other's but for one."""
        return range(self.index * count // self.of, (self.index + 1) * count // self.of)


WHOLE = Part()


def part_of(text: str, environment: Mapping[str, str] = os.environ) -> Part:
    """The part that `I/N` names; or with `auto` the process's own, as torchrun or a SLURM array number them.

    Raises:
        UserError: It is no part, or the environment numbers none.
    """
    if text != "auto":
        index, _, of = text.partition("/")
        if not (_is_count(index) and _is_count(of)):
            raise UserError(f"--part {text}: write I/N, such as 0/4, or auto")
        return Part(int(index), int(of))
    if "RANK" in environment:
        return Part(*_counts(environment, "RANK", "WORLD_SIZE"))
    if "SLURM_ARRAY_TASK_ID" not in environment:
        raise UserError("--part auto: neither RANK nor SLURM_ARRAY_TASK_ID is set: write I/N, such as 0/4")
    names = (f"SLURM_ARRAY_TASK_{name}" for name in ("ID", "MIN", "MAX", "STEP", "COUNT"))
    number, first, last, step, count = _counts({"SLURM_ARRAY_TASK_STEP": "1"} | dict(environment), *names)
    tasks = range(first, last + 1, step or 1)
    if len(tasks) != count or number not in tasks:
        raise UserError("--part auto: the SLURM array has gaps: number it without, as in --array=0-7, or write I/N")
    return Part(tasks.index(number), count)


def _is_count(text: str) -> bool:
    return text.isdecimal() and len(text) <= LONGEST


def _counts(environment: Mapping[str, str], *names: str) -> list[int]:
    counts = []
    for name in names:
        value = environment.get(name, "")
        if not _is_count(value):
            raise UserError(f"--part auto: {name} is {value!r}, which is no count: write I/N, such as 0/4")
        counts.append(int(value))
    return counts


Idle = Callable[[], bool]  # whether a process leaves all shards to others, for now


def never() -> bool:
    """It does what it can."""
    return False


class Shared(Protocol):
    """Work that can be sent to other processes, which do shards of it in the same run."""

    @property
    def run(self) -> Path:
        """The run directory."""

    def share(self) -> None:
        """Do shards until all are done, by whichever process."""


Call = Callable[[Shared], Idle]  # has other processes do shards of some work, too


def alone(work: Shared) -> Idle:
    """Nobody is called."""
    return never


@dataclass(frozen=True)
class Crew:
    """Who does a command's shards.

    Attributes:
        part: The part of them that is done.
        call: Has other processes do shards of some work, too; returns when this process leaves all to them.
    """

    part: Part = WHOLE
    call: Call = alone


ALONE = Crew()
