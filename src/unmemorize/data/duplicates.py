"""Duplicate captions and pictures: exact ones by hash, near ones by perceptual hash and then by embedding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from unmemorize.data.database import rows
from unmemorize.data.hashes import similarities, similarity

BITS = 7  # perceptual hashes that differ in at most so many of their 64 bits are looked at again
SAME = 0.95  # cosine of embeddings from which two pictures are one: their difference is a third of their contrast
WINDOW = 50  # of one perceptual hash, a picture is compared with so many that follow it
LARGEST = 500  # pictures of a group that its tightest and loosest pair are looked for among


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
    tightest: tuple[int, int, float] | None
    loosest: tuple[int, int, float] | None


def group_pictures(connection: Any) -> None:
    """Make `pictures` (row, grp, first) of the view `items`: `grp` is the first row of the picture's group.

    `first` is the first row with the same pixels. A row without a picture is a group of its own.
    """
    connection.execute(
        """CREATE TABLE exact AS
        SELECT row, coalesce(min(row) FILTER (pixels IS NOT NULL) OVER (PARTITION BY pixels), row) AS first
        FROM items WHERE pixels IS NOT NULL UNION ALL SELECT row, row FROM items WHERE pixels IS NULL"""
    )
    connection.execute(
        """CREATE TABLE distinct_pictures AS
        SELECT row, perceptual, embedding, row_number() OVER (PARTITION BY perceptual ORDER BY row) AS place
        FROM items SEMI JOIN (SELECT row FROM exact WHERE row = first) USING (row) WHERE pixels IS NOT NULL"""
    )
    members, leaders = _components(list(_near(connection)))
    connection.register("components", pa.table({"row": pa.array(members), "grp": pa.array(leaders)}))
    connection.execute(
        """CREATE TABLE pictures AS SELECT e.row, coalesce(c.grp, e.first) AS grp, e.first
        FROM exact e LEFT JOIN components c ON c.row = e.first"""
    )
    connection.unregister("components")


def _near(connection: Any) -> Iterator[tuple[int, int]]:
    """Pairs of different pictures that are one picture to the eye."""
    # Two hashes within 7 bits have one of four 16-bit bands within 1 bit of the other's: complete, and never all pairs.
    connection.execute(
        f"""CREATE TABLE bands AS SELECT perceptual, band, (perceptual >> (16 * band)) & 65535 AS key
        FROM (SELECT DISTINCT perceptual FROM distinct_pictures), range(4) AS bands(band);
        CREATE TABLE near AS SELECT DISTINCT a.perceptual AS one, b.perceptual AS other
        FROM (SELECT perceptual, band, key FROM bands UNION ALL
              SELECT perceptual, band, xor(key, 1::UBIGINT << bit::UBIGINT)
              FROM bands, range(16) AS flips(bit)) a
        JOIN bands b USING (band, key)
        WHERE a.perceptual < b.perceptual AND bit_count(xor(a.perceptual, b.perceptual)) <= {BITS}"""
    )
    query = f"""SELECT a.row AS a, b.row AS b, a.embedding AS x, b.embedding AS y
        FROM distinct_pictures a JOIN distinct_pictures b
        ON a.perceptual = b.perceptual AND b.place - a.place BETWEEN 1 AND {WINDOW}
        UNION ALL SELECT a.row, b.row, a.embedding, b.embedding
        FROM near JOIN distinct_pictures a ON a.perceptual = one JOIN distinct_pictures b ON b.perceptual = other
        WHERE a.place <= {WINDOW} AND b.place <= {WINDOW}"""
    for batch in connection.sql(query).to_arrow_reader(8192):
        if len(batch):
            alike = similarity(batch["x"].to_pylist(), batch["y"].to_pylist()) >= SAME
            yield from zip(batch["a"].to_numpy()[alike].tolist(), batch["b"].to_numpy()[alike].tolist(), strict=True)


def _components(pairs: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Every row of a pair, and the first row it is connected with."""
    members, index = np.unique(np.array(pairs, np.int64).reshape(-1, 2), return_inverse=True)
    one, other = index.reshape(-1, 2).T
    graph = coo_array((np.ones(len(one), np.int8), (one, other)), shape=(len(members),) * 2)
    label = connected_components(graph, directed=False)[1] if len(members) else np.zeros(0, np.int64)
    first = np.full(label.max(initial=-1) + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, label, members)
    return members, first[label]


def picture_groups(connection: Any) -> Iterator[Group]:
    """Every group of two rows or more, the largest first."""
    found = rows(
        connection,
        """SELECT grp, count(*) AS rows, count(DISTINCT file) AS files, count(DISTINCT pixels) AS pixels,
        count(DISTINCT text) AS captions FROM pictures JOIN items USING (row) WHERE items.pixels IS NOT NULL
        GROUP BY grp HAVING count(*) > 1 ORDER BY count(*) DESC, grp""",
    )
    connection.execute(
        """CREATE OR REPLACE TABLE variants AS SELECT p.grp, d.row, d.embedding
        FROM pictures p JOIN distinct_pictures d USING (row)
        QUALIFY count(*) OVER (PARTITION BY p.grp) > 1"""
    )
    for g in found:
        tightest, loosest = _pairs(connection, g["grp"]) if g["pixels"] > 1 else (None, None)
        yield Group(g["grp"], g["rows"], g["files"], g["pixels"], g["captions"], tightest, loosest)


def _pairs(connection: Any, group: int) -> tuple[tuple[int, int, float], tuple[int, int, float]]:
    query = f"SELECT row, embedding FROM variants WHERE grp = {group} ORDER BY row LIMIT {LARGEST}"
    members = rows(connection, query)
    cosine = similarities([m["embedding"] for m in members])
    pairs = [
        (members[i]["row"], members[j]["row"], min(float(cosine[i, j]), 1.0))
        for i, j in combinations(range(len(members)), 2)
    ]
    return max(pairs, key=lambda pair: (pair[2], -pair[0])), min(pairs, key=lambda pair: (pair[2], pair[0]))


def caption_groups(connection: Any, most: int) -> list[dict[str, Any]]:
    """Captions that are said more than once: how often, over how many groups of pictures; the most frequent first."""
    return rows(
        connection,
        f"""SELECT left(min_by(caption, row), 300) AS caption, count(*) AS rows, count(DISTINCT grp) AS image_groups
        FROM items JOIN pictures USING (row) GROUP BY text HAVING count(*) > 1
        ORDER BY count(*) DESC, min(row) LIMIT {most}""",
    )
