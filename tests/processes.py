"""A command in two processes that know of each other, as torchrun and `accelerate launch` start them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from itertools import count

ALONE = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "ACCELERATE_USE_CPU": "true"}
PORTS = count(20_000 + 10 * os.getpid() % 10_000)


def run_in_two_processes(command: Sequence[str], timeout: float = 250) -> None:
    """Both have to succeed."""
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(next(PORTS))}
    shared["PYTHONPATH"] = os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])
    processes = []
    for rank in ("0", "1"):
        environment = os.environ | ALONE | shared | {"RANK": rank, "LOCAL_RANK": rank}
        processes.append(subprocess.Popen(command, env=environment))
    try:
        assert [process.wait(timeout=timeout) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
            process.wait()
