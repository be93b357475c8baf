"""Work cut into pieces that can be killed and run again.

A piece is a range of rows and one Parquet file. The file appears under its name only when it is whole, so its
existence is the done-marker; a killed run loses the piece in flight and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from unmemorize.core.run import atomic

Item = TypeVar("Item")


def run_shards(
    items: Sequence[Item], work: Callable[[Sequence[Item]], list[dict[str, Any]]], *, folder: Path, size: int
) -> Iterator[int]:
    """Call `work` on `size` items at a time, write its rows to `folder`, and yield how many items are done.

    Pieces already written are not done again. What `work` itself writes must be whole before it returns.
    """
    for start in range(0, len(items), size):
        path = folder / f"{start // size:05d}.parquet"
        piece = items[start : start + size]
        if not path.exists():
            rows = work(piece)
            with atomic(path) as temporary:
                pq.write_table(pa.Table.from_pylist(rows), temporary)
        yield start + len(piece)


def merge_shards(folder: Path, target: Path) -> pa.Table:
    """Join the pieces in order into one file."""
    table = pa.concat_tables([pq.read_table(p) for p in sorted(folder.glob("*.parquet"))], promote_options="permissive")
    with atomic(target) as temporary:
        pq.write_table(table, temporary)
    return table
