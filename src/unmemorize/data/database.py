"""DuckDB, on one machine and out of core: the one place that knows it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from unmemorize.core.errors import MissingExtra, UserError
from unmemorize.core.run import atomic, scratch

_size = re.compile(r"(\d+)\s*(MB|GB|TB)", re.IGNORECASE)
BATCH = 1 << 16  # rows that are written at once
GROUPED = 1 << 22  # rows that are grouped by a hash at once: some hundred megabytes
LEAST = 200  # megabytes: with less, DuckDB cannot hold what it works on


def require() -> None:
    """Find out before any work whether the data audit's libraries are there.

    Raises:
        MissingExtra: duckdb or imagehash is not installed.
    """
    if find_spec("duckdb") is None or find_spec("imagehash") is None:
        raise MissingExtra("the data audit", "data")


def check_memory(memory: str) -> None:
    """Find out before any work whether a limit of memory can be one.

    Raises:
        UserError: It is no size, or too small a one.
    """
    match = _size.fullmatch(memory.strip())
    megabytes = int(match[1]) * {"MB": 1, "GB": 1000, "TB": 1_000_000}[match[2].upper()] if match else 0
    if megabytes < LEAST:
        raise UserError(f"--memory {memory}: write a size of at least {LEAST}MB, such as 4GB")


@contextmanager
def database(folder: Path, memory: str = "1GB") -> Iterator[Any]:
    """A DuckDB connection whose tables and overflow lie in a folder of its own in `folder`, deleted at the end.

    Args:
        folder: Where that folder is made.
        memory: What DuckDB holds before it writes to the folder; pages it does not count are a few hundred MB more.

    Raises:
        UserError: What has to be held at once is more than `memory`.
    """
    import duckdb

    with scratch(folder) as work:
        settings: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": memory,
            "temp_directory": str(work / "overflow"),
            "preserve_insertion_order": False,
            "python_enable_replacements": False,  # or SQL could reach Python's variables
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        }
        with duckdb.connect(str(work / "audit.duckdb"), config=settings) as connection:
            try:
                yield connection
            except duckdb.OutOfMemoryException as error:
                raise UserError(
                    f"the analysis needs more than {memory} of memory: allow it more with --memory"
                ) from error


def arrow(connection: Any, query: str) -> pa.Table:
    """What a query returns."""
    return connection.sql(query).to_arrow_table()


def rows(connection: Any, query: str) -> list[dict[str, Any]]:
    """What a query returns, row by row."""
    result: list[dict[str, Any]] = arrow(connection, query).to_pylist()
    return result


def insert(connection: Any, table: str, values: pa.Table) -> None:
    """Add rows to a table of the same columns."""
    connection.register("inserted", values)
    connection.execute(f"INSERT INTO {table} FROM inserted")
    connection.unregister("inserted")


def group_hashes(connection: Any, table: str, source: str, found: str, size: int) -> None:
    """Group rows by a hash, some of the hashes at a time, so that memory holds no more groups than `GROUPED`.

    In a first pass the rows are written to files by the upper bits of their hash; in a second each file is grouped
    alone. Few rows are grouped at once. Whatever the number of files, the groups are the same.

    Args:
        connection: The database.
        table: The table that is made.
        source: A query whose column `gram` is the hash, a UBIGINT.
        found: What stands around the table of rows in the query that groups them, with {} in its place.
        size: How many rows the query gives, at most.
    """
    bits = (size // GROUPED).bit_length()
    if not bits:
        connection.execute(f"CREATE TABLE {table} AS {found.format(f'({source})')}")
        return
    work = Path(rows(connection, "SELECT current_setting('temp_directory') AS folder")[0]["folder"]).parent
    with scratch(work) as folder:
        connection.execute(
            f"""COPY (SELECT *, (gram >> {64 - bits})::INTEGER AS part FROM ({source}))
            TO '{_quoted(folder / "parts")}' (FORMAT parquet, PARTITION_BY (part))"""
        )
        first = "CREATE TABLE {0} AS {1}"
        for part in sorted((folder / "parts").iterdir()):
            read = found.format(f"read_parquet('{_quoted(part)}/*.parquet', hive_partitioning = false)")
            connection.execute(first.format(table, read))
            first = "INSERT INTO {0} {1}"


def _quoted(path: Path) -> str:
    """A path as it stands between the quotes of a query."""
    return str(path).replace("'", "''")


def write_query(connection: Any, query: str, path: Path) -> None:
    """Write what a query returns to a Parquet file, some rows at a time."""
    reader = connection.sql(query).to_arrow_reader(BATCH)
    with atomic(path) as temporary, pq.ParquetWriter(temporary, reader.schema) as writer:
        for batch in reader:
            writer.write_batch(batch)


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
