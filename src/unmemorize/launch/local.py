"""Workers on this machine: processes that are started anew, one a GPU, and do shards beside the process itself."""

from __future__ import annotations

import logging
import multiprocessing as mp
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from unmemorize.core.crew import Call, Idle, Shared, never
from unmemorize.core.plain import printable
from unmemorize.core.run import remove_left


@contextmanager
def local_workers(count: int) -> Iterator[Call]:
    """Start one process less than `count`: this one is a worker, too. None outlives the block, or this process."""
    if count > 1:  # or each takes all cores; one number for all, since it decides the last digits
        os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // count, 1)))
    over, called = threading.Event(), list[Shared]()
    workers = [_started(number, f"worker {number + 1} of {count}", over) for number in range(1, count)]

    def call(work: Shared) -> Idle:
        called.append(work)
        for _, connection in workers:
            with suppress(OSError):  # it is lost, which was said
                connection.send(work)
        return never

    try:
        yield call
    finally:
        over.set()
        for process, _ in workers:
            process.terminate()
            process.join()
        for work in called:
            remove_left(work.run)


def _started(number: int, name: str, over: threading.Event) -> tuple[mp.process.BaseProcess, mp.connection.Connection]:
    context = mp.get_context("spawn")
    connection, other = context.Pipe()
    process = context.Process(target=_work, args=(other, number), daemon=True)
    process.start()
    other.close()

    def watch() -> None:
        reason = "killed"
        with suppress(EOFError, OSError):
            reason = connection.recv()
        process.join()  # or it stays in the table of processes, and its claim seems to be a live one's
        if not over.is_set():
            logging.getLogger(__name__).warning("%s is lost: %s: the others go on", name, reason)

    threading.Thread(target=watch, daemon=True).start()
    return process, connection


def _work(connection: mp.connection.Connection, number: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is told to the first process, which stops the others
    threading.Thread(target=_end_with, args=(mp.parent_process(),), daemon=True).start()
    try:
        while True:
            work = connection.recv()
            if (torch := sys.modules.get("torch")) and torch.cuda.is_available():  # loaded with the work that needs it
                torch.cuda.set_device(number % torch.cuda.device_count())
            work.share()
    except Exception as error:
        connection.send(printable(str(error) or repr(error)))


def _end_with(parent: mp.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)
