"""Work that takes milliseconds, for processes that are started and killed: `python squares.py RUN WORKERS` does it."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from unmemorize.core.crew import never
from unmemorize.core.shards import merge_shards, run_shards
from unmemorize.launch import launched

COUNT = 90


@dataclass(frozen=True)
class Squares:
    """Squares numbers; who did which is left in `done.txt`."""

    run: Path
    seconds: float = 0.01
    fails_in: int = 0  # a process whose workers fail

    def do(self, shard):
        if self.fails_in and os.getpid() != self.fails_in:
            raise OSError("no more\nsquares")
        with open(self.run / "done.txt", "a") as log:
            log.write(f"{os.getpid()} {shard[0]}\n")
        time.sleep(self.seconds)
        return [{"n": n, "square": n * n} for n in shard]

    def share(self, idle=never):
        folder = self.run / "shards" / "squares"
        for _ in run_shards(range(COUNT), self.do, folder=folder, size=3, idle=idle):
            pass

    def processes(self):
        """The processes that have begun a shard."""
        log = self.run / "done.txt"
        return {int(line.split()[0]) for line in log.read_text().splitlines()} if log.exists() else set()

    def files(self):
        """The bytes of everything but who did which."""
        return {p.relative_to(self.run): p.read_bytes() for p in self.run.rglob("*.*") if p.name != "done.txt"}


def work(squares, workers, launcher="local", do=lambda: None):
    """Do them with workers, and join the shards; `do` is called once all workers are at theirs."""
    squares.run.mkdir(parents=True, exist_ok=True)
    with launched(launcher, workers) as call:
        idle = call(squares)
        started = set()

        def wait():  # for those that are still being started
            if len(squares.processes()) >= workers - (launcher == "local") and not started:
                started.add(True)
                do()
            return not started or idle()

        squares.share(wait)
    merge_shards(squares.run / "shards" / "squares", squares.run / "squares.parquet")


if __name__ == "__main__":
    work(Squares(Path(sys.argv[1])), int(sys.argv[2]), *sys.argv[3:])
