"""DuckDB, on one machine and out of core: the one place that knows it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa

from unmemorize.core.errors import MissingExtra
from unmemorize.core.run import scratch

MEMORY = "1GB"  # beyond it DuckDB writes to the work folder; pages it does not count are a few hundred megabytes more


def require() -> None:
    """Find out before any work whether the data audit's libraries are there.

    Raises:
        MissingExtra: duckdb or imagehash is not installed.
    """
    if find_spec("duckdb") is None or find_spec("imagehash") is None:
        raise MissingExtra("the data audit", "data")


@contextmanager
def database(folder: Path) -> Iterator[Any]:
    """A DuckDB connection whose tables and overflow lie in a folder of its own in `folder`, deleted at the end."""
    import duckdb

    with scratch(folder) as work:
        settings: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": MEMORY,
            "temp_directory": str(work / "overflow"),
            "preserve_insertion_order": False,
            "python_enable_replacements": False,  # or SQL could reach Python's variables
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        }
        with duckdb.connect(str(work / "audit.duckdb"), config=settings) as connection:
            yield connection


def arrow(connection: Any, query: str) -> pa.Table:
    """What a query returns."""
    return connection.sql(query).to_arrow_table()


def rows(connection: Any, query: str) -> list[dict[str, Any]]:
    """What a query returns, row by row."""
    found: list[dict[str, Any]] = arrow(connection, query).to_pylist()
    return found


def open_parquet(connection: Any, files: Sequence[Path], view: str) -> None:
    """Make Parquet files of one schema a view."""
    connection.read_parquet([str(f) for f in files]).create_view(view)


def counts(connection: Any, query: str) -> tuple[int, ...]:
    """The one row of whole numbers that a query returns."""
    return tuple(int(value) for value in rows(connection, query)[0].values())


def caption_files(connection: Any) -> dict[str, int]:
    """How many rows have their caption from which kind of file beside or among the pictures, most first."""
    query = """
        SELECT captioned_by AS name, count(*) AS n FROM items WHERE captioned_by <> ''
        GROUP BY name ORDER BY n DESC, name
    """
    return {row["name"]: int(row["n"]) for row in rows(connection, query)}
