"""Workers on a cluster, or on this machine: Ray actors, which Ray starts again where they are lost."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from socket import create_connection
from typing import Any

from unmemorize.core.crew import Call, Idle, Shared
from unmemorize.core.errors import MissingExtra, UserError
from unmemorize.core.plain import printable

log = logging.getLogger(__name__)
RESTARTS = 5  # times that an actor is started again


@contextmanager
def ray_workers(count: int, address: str = "") -> Iterator[Call]:
    """Start `count` actors, each with a GPU where the cluster has some; this process works once they are gone.

    Raises:
        MissingExtra: Ray is not installed.
        UserError: The cluster does not answer, or runs other versions.
    """
    ray = _ray(address)
    needs = {"num_cpus": 1, "num_gpus": 1 if ray.cluster_resources().get("GPU") else 0}
    actor = ray.remote(max_restarts=RESTARTS, max_task_retries=RESTARTS, **needs)(_Worker)
    actors = [actor.remote() for _ in range(count)]

    def call(work: Shared) -> Idle:
        calls = [actor.share.remote(work) for actor in actors]
        return lambda: _are_busy(ray, calls)

    try:
        yield call
    finally:
        ray.shutdown()


class _Worker:
    """What an actor is."""

    def share(self, work: Shared) -> None:
        work.share()


def _ray(address: str) -> Any:
    """Ray, connected to the cluster; without an address to the one that RAY_ADDRESS names, or to one of its own."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it tells nobody
    try:
        import ray
        from ray import init  # of a folder that happens to be called ray there is none
    except ImportError as error:
        raise MissingExtra("--launcher ray", "ray") from error
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if host:  # or Ray would try for minutes
            create_connection((host, int(port)), timeout=10).close()
        init(address=address or None, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"--launcher ray: no cluster of these versions answers at {address}: {_line(error)}") from error
    return ray


def _are_busy(ray: Any, calls: list[Any]) -> bool:
    """Whether any actor is at its shards; those that ended are taken off the list."""
    ended, calls[:] = ray.wait(calls, num_returns=len(calls), timeout=0) if calls else ([], [])
    for one in ended:
        try:
            ray.get(one)
        except ray.exceptions.RayError as error:
            log.warning("a worker is lost: %s: the others go on", _line(getattr(error, "cause", error)))
    return bool(calls)


def _line(error: Any) -> str:
    return printable(str(error).strip().partition("\n")[0])
