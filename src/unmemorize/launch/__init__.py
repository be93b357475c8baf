"""Launchers: how other processes are started, and are given work of which they do shards."""

from contextlib import AbstractContextManager

from unmemorize.core.crew import Call
from unmemorize.core.errors import UserError
from unmemorize.launch.local import local_workers
from unmemorize.launch.ray import ray_workers

__all__ = ["launched"]


def launched(launcher: str, count: int) -> AbstractContextManager[Call]:
    """So many workers of a launcher, `local`, `ray` or `ray:address=…`, as a block; its value has them do shards.

    Raises:
        UserError: There is no such launcher, or its cluster does not answer.
        MissingExtra: Ray is not installed.
    """
    name, _, address = launcher.partition(":address=")
    if name == "ray":
        return ray_workers(count, address)
    if launcher != "local":
        raise UserError(f"--launcher {launcher}: no such launcher: name local, ray, or ray:address=HOST:PORT")
    return local_workers(count)
