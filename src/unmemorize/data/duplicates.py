"""Duplicate captions and pictures: exact ones by hash, near ones by perceptual hash and then by embedding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from unmemorize.core.errors import UserError
from unmemorize.data.database import arrow, insert, rows
from unmemorize.data.hashes import Looks, similarities, similarity
from unmemorize.data.near_hashes import SEVEN_BITS, THREE_BITS, Tables, near_hashes

Pair = tuple[int, int, float]  # rows of two pictures, and their cosine

MANY = 1_000_000  # perceptual hashes; of more, only those within three bits are compared, since seven take n² / 1928
SAME = 0.95  # cosine of embeddings from which two pictures are one: their difference is a third of their contrast
WINDOW = 50  # of one perceptual hash, a picture is compared with so many that follow it
LARGEST = 500  # pictures of a group that its tightest and loosest pair are looked for among


@dataclass(frozen=True)
class Rule:
    """Two pictures are near-duplicates if their pixels are equal, or their hashes within `bits` bits and alike."""

    bits: int

    @property
    def name(self) -> str:
        """The rule in a word, as results are labelled with it."""
        return f"phash-{self.bits}-cosine-16px"

    def __call__(self, one: Looks, other: Looks) -> bool:
        """Whether two pictures are near-duplicates."""
        if one.pixels == other.pixels:
            return True
        cosine = float(similarity([one.embedding], [other.embedding])[0])
        return self.holds((one.perceptual ^ other.perceptual).bit_count(), cosine)

    def holds(self, bits: int, cosine: float) -> bool:
        """Whether two pictures are, whose hashes differ in so many bits and whose embeddings have this cosine."""
        return bits <= self.bits and cosine >= SAME

    @classmethod
    def named(cls, name: str) -> Rule:
        """The rule that results are labelled with.

        Raises:
            UserError: There is none of this name.
        """
        for rule in (cls(SEVEN_BITS.bits), cls(THREE_BITS.bits)):
            if rule.name == name:
                return rule
        raise UserError(f"{name}: no rule for near-duplicates: audit the pictures again")


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


def group_pictures(connection: Any) -> Rule:
    """Make `pictures` (row, grp, first) of the view `items`: `grp` is the first row of the picture's group.

    `first` is the first row with the same pixels. A row without a picture is a group of its own.

    Returns:
        The rule: hashes within seven bits, or within three where there are more than `MANY`.
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
    tables = _find_near_hashes(connection)
    _collect_compared(connection)
    members, leaders = _components(_near_pictures(connection))
    connection.register("components", pa.table({"row": members, "grp": leaders}))
    connection.execute(
        """CREATE TABLE pictures AS SELECT e.row, coalesce(c.grp, e.first) AS grp, e.first
        FROM exact e LEFT JOIN components c ON c.row = e.first"""
    )
    connection.unregister("components")
    return Rule(tables.bits)


def tables_for(hashes: int) -> Tables:
    """How near ones are looked for among so many perceptual hashes."""
    return SEVEN_BITS if hashes <= MANY else THREE_BITS


def _find_near_hashes(connection: Any) -> Tables:
    """Make `near` (one, other): the pairs of different perceptual hashes within the bits of the tables it returns."""
    distinct = arrow(connection, "SELECT DISTINCT perceptual FROM distinct_pictures")
    hashes = distinct["perceptual"].to_numpy()
    tables = tables_for(len(hashes))
    connection.execute("CREATE TABLE met (one UBIGINT, other UBIGINT)")
    for one, other in near_hashes(hashes, tables):
        insert(connection, "met", pa.table({"one": one, "other": other}))
    connection.execute("CREATE TABLE near AS SELECT DISTINCT one, other FROM met; DROP TABLE met")
    return tables


def _collect_compared(connection: Any) -> None:
    """Make `compared`: the distinct pictures that share their hash or have a near one, with their embeddings."""
    connection.execute(
        """CREATE TABLE compared AS SELECT row, distinct_pictures.perceptual, place, embedding
        FROM distinct_pictures JOIN items USING (row)
        WHERE distinct_pictures.perceptual IN (
            SELECT one FROM near UNION ALL SELECT other FROM near
            UNION ALL SELECT perceptual FROM distinct_pictures WHERE place = 2)"""
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


def _components(pairs: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Every row of a pair, and the first row it is connected with."""
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
