"""Duplicate captions and pictures: exact ones by hash, near ones by perceptual hash and then by embedding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from unmemorize.data.database import arrow, open_parquet, rows
from unmemorize.data.hashes import Looks, similarities, similarity
from unmemorize.data.near_hashes import SEVEN_BITS

Pair = tuple[int, int, float]  # rows of two pictures, and their cosine

RULE = "phash-7-cosine-16px"  # as results are labelled with it
SAME = 0.95  # cosine of embeddings from which two pictures are one: their difference is a third of their contrast
WINDOW = 50  # of one perceptual hash, a picture is compared with so many that follow it
LARGEST = 500  # pictures of a group that its tightest and loosest pair are looked for among


def is_near(bits: int, cosine: float) -> bool:
    """Whether two pictures are one to the eye, whose hashes differ in so many bits, with this cosine of embeddings."""
    return bits <= SEVEN_BITS.bits and cosine >= SAME


def are_near_duplicates(one: Looks, other: Looks) -> bool:
    """Whether two pictures have equal pixels, or are one to the eye."""
    if one.pixels == other.pixels:
        return True
    cosine = float(similarity([one.embedding], [other.embedding])[0])
    return is_near((one.perceptual ^ other.perceptual).bit_count(), cosine)


@dataclass(frozen=True)
class Group:
    """Near-duplicate pictures: rows, distinct files, distinct pixels, distinct captions, how alike they are.

    `tightest` and `loosest` are (row, row, cosine) of two different pictures, None where all pixels are equal.
    """

    group: int
    rows: int
    files: int
    pixels: int
    captions: int
    tightest: Pair | None
    loosest: Pair | None


def group_pictures(connection: Any, pairs: Sequence[Path], copies: Sequence[Path] = ()) -> None:
    """Make `pictures` (row, grp, first) of the view `items`: `grp` is the first row of the picture's group.

    `first` is the first row with the same pixels. A row without a picture is a group of its own.

    Args:
        connection: The database.
        pairs: Files of pairs of perceptual hashes (`one`, `other`), whose pictures are compared.
        copies: Files of pairs of rows (`one`, `other`) whose pictures are one by another rule.
    """
    connection.execute(
        """CREATE TABLE exact AS SELECT row, coalesce(first, row) AS first
        FROM items LEFT JOIN (SELECT pixels, min(row) AS first FROM items WHERE pixels IS NOT NULL GROUP BY pixels)
        USING (pixels)"""
    )
    connection.execute(
        """CREATE TABLE distinct_pictures AS
        SELECT row, perceptual, row_number() OVER (PARTITION BY perceptual ORDER BY row) AS place
        FROM items SEMI JOIN (SELECT row FROM exact WHERE row = first) USING (row) WHERE pixels IS NOT NULL"""
    )
    open_pairs(connection, pairs, "near", "UBIGINT")
    open_pairs(connection, copies, "copied_rows", "BIGINT")
    connection.execute(
        """CREATE TABLE copied AS SELECT DISTINCT a.first AS one, b.first AS other
        FROM copied_rows JOIN exact a ON a.row = one JOIN exact b ON b.row = other WHERE a.first <> b.first"""
    )
    _collect_compared(connection)
    members, leaders = components(np.concatenate([_near_pictures(connection), _copied_pictures(connection)]))
    connection.register("components", pa.table({"row": members, "grp": leaders}))
    connection.execute(
        """CREATE TABLE pictures AS SELECT e.row, coalesce(c.grp, e.first) AS grp, e.first
        FROM exact e LEFT JOIN components c ON c.row = e.first"""
    )
    connection.unregister("components")


def open_pairs(connection: Any, pairs: Sequence[Path], table: str, kind: str) -> None:
    """Make a table (one, other) of pairs, of perceptual hashes or of rows, each once; their type is `kind`."""
    if pairs:
        open_parquet(connection, pairs, f"{table}_found")
        connection.execute(f"CREATE TABLE {table} AS SELECT DISTINCT one, other FROM {table}_found")
    else:
        connection.execute(f"CREATE TABLE {table} (one {kind}, other {kind})")


def _collect_compared(connection: Any) -> None:
    """Make `compared`: the distinct pictures that share their hash or have a near one, or a copy; their embeddings."""
    connection.execute(
        """CREATE TABLE compared AS SELECT row, distinct_pictures.perceptual, place, embedding
        FROM distinct_pictures JOIN items USING (row)
        WHERE distinct_pictures.perceptual IN (
            SELECT one FROM near UNION ALL SELECT other FROM near
            UNION ALL SELECT perceptual FROM distinct_pictures WHERE place = 2)
        OR row IN (SELECT one FROM copied UNION ALL SELECT other FROM copied)"""
    )


def _near_pictures(connection: Any) -> NDArray[np.int64]:
    """Pairs of different pictures that are one picture to the eye, as rows: (n, 2)."""
    query = f"""SELECT a.row AS a, b.row AS b, a.embedding AS x, b.embedding AS y
        FROM compared a JOIN compared b
        ON a.perceptual = b.perceptual AND b.place - a.place BETWEEN 1 AND {WINDOW}
        UNION ALL SELECT a.row, b.row, a.embedding, b.embedding
        FROM near JOIN compared a ON a.perceptual = one JOIN compared b ON b.perceptual = other
        WHERE a.place <= {WINDOW} AND b.place <= {WINDOW}"""
    pairs = [np.zeros((0, 2), np.int64)]
    for batch in connection.sql(query).to_arrow_reader(8192):
        if len(batch):
            alike = similarity(batch["x"].to_pylist(), batch["y"].to_pylist()) >= SAME
            pairs.append(np.stack([batch["a"].to_numpy()[alike], batch["b"].to_numpy()[alike]], axis=1))
    return np.concatenate(pairs)


def _copied_pictures(connection: Any) -> NDArray[np.int64]:
    """Pairs of different pictures that another rule takes for one, as rows: (n, 2)."""
    table = arrow(connection, "SELECT one, other FROM copied")
    return np.stack([table["one"].to_numpy(), table["other"].to_numpy()], axis=1)


def components(pairs: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Every row of some pairs (n, 2), and the first row that it is connected with."""
    members, index = np.unique(pairs, return_inverse=True)
    one, other = index.reshape(-1, 2).T
    graph = coo_array((np.ones(len(one), np.int8), (one, other)), shape=(len(members),) * 2)
    label = connected_components(graph, directed=False)[1] if len(members) else np.zeros(0, np.int64)
    first = np.full(label.max(initial=-1) + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, label, members)
    return members, first[label]


def sampled_pictures(connection: Any, count: int) -> set[int]:
    """Rows of a few different pictures, spread over all by a hash of the row."""
    query = f"SELECT row FROM distinct_pictures ORDER BY hash(row) LIMIT {count}"
    return {row["row"] for row in rows(connection, query)}


def picture_groups(connection: Any) -> Iterator[Group]:
    """Every group of two rows or more, the largest first."""
    counted = rows(
        connection,
        """SELECT grp, count(*) AS rows, count(DISTINCT file) AS files, count(DISTINCT pixels) AS pixels,
        count(DISTINCT text) AS captions FROM pictures JOIN items USING (row) WHERE items.pixels IS NOT NULL
        GROUP BY grp HAVING count(*) > 1 ORDER BY count(*) DESC, grp""",
    )
    pairs = dict(_extreme_pairs(connection))
    for g in counted:
        tightest, loosest = pairs.get(g["grp"], (None, None))
        yield Group(g["grp"], g["rows"], g["files"], g["pixels"], g["captions"], tightest, loosest)


def _extreme_pairs(connection: Any) -> Iterator[tuple[int, tuple[Pair, Pair]]]:
    """Of each group with different pixels its tightest and its loosest pair."""
    query = f"""SELECT grp, row, embedding FROM compared JOIN pictures USING (row)
        QUALIFY count(*) OVER (PARTITION BY grp) > 1
        AND row_number() OVER (PARTITION BY grp ORDER BY row) <= {LARGEST} ORDER BY grp, row"""
    batches = connection.sql(query).to_arrow_reader(8192)
    members = (member for batch in batches for member in batch.to_pylist())
    for group, variants in groupby(members, key=itemgetter("grp")):
        yield group, _tightest_and_loosest(list(variants))


def _tightest_and_loosest(variants: list[dict[str, Any]]) -> tuple[Pair, Pair]:
    cosines = similarities([v["embedding"] for v in variants])
    first, second = np.triu_indices(len(variants), 1)
    of_pairs = np.minimum(cosines[first, second], 1)
    tightest, loosest = (
        (variants[first[i]]["row"], variants[second[i]]["row"], float(of_pairs[i]))
        for i in (int(of_pairs.argmax()), int(of_pairs.argmin()))
    )
    return tightest, loosest


def caption_groups(connection: Any, most: int) -> list[dict[str, Any]]:
    """Captions that are said more than once: how often, over how many groups of pictures; the most frequent first."""
    return rows(
        connection,
        f"""SELECT left(min_by(caption, row), 300) AS caption, count(*) AS rows, count(DISTINCT grp) AS image_groups
        FROM items JOIN pictures USING (row) WHERE text IS NOT NULL GROUP BY text HAVING count(*) > 1
        ORDER BY count(*) DESC, min(row) LIMIT {most}""",
    )
