"""Two sets of pictures: which of one are in the other, by the rule for near-duplicates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from unmemorize.data.database import counts, insert, open_parquet, write_query
from unmemorize.data.duplicates import SAME, WINDOW, open_pairs
from unmemorize.data.hashes import similarity


def compare_with(
    connection: Any, files: Sequence[Path], pairs: Sequence[Path], target: Path, copies: Sequence[Path] = ()
) -> int:
    """Write which rows of `items` have a picture that is in other rows, too, with the one that is most like it there.

    The pictures have been grouped (`group_pictures`). Each is compared with the others as with each other in grouping:
    by hash, then by embedding; and those that another rule takes for copies are given.

    Args:
        connection: The database.
        files: The other rows.
        pairs: Files of pairs of perceptual hashes of both (`one`, `other`), whose pictures are compared.
        target: A Parquet file (row, id, other, equal, cosine, sscd): `other` is the id of the other row, `equal` that
            all pixels are; a cosine is null where the pair was not found by it.
        copies: Files of pairs of a row and a copy among the other rows (`row`, `other`), with their cosine (`sscd`).

    Returns:
        How many rows have such a picture.
    """
    open_parquet(connection, files, "others")
    connection.execute(
        """CREATE TABLE other_pictures AS
        SELECT row, pixels, perceptual, row_number() OVER (PARTITION BY perceptual ORDER BY row) AS place
        FROM (SELECT min(row) AS row, pixels, min(perceptual) AS perceptual FROM others WHERE pixels IS NOT NULL
              GROUP BY pixels)"""
    )
    open_pairs(connection, pairs, "met", "UBIGINT")
    connection.execute(
        """CREATE TABLE crossing AS
        WITH here AS (SELECT DISTINCT perceptual AS here FROM distinct_pictures),
             there AS (SELECT DISTINCT perceptual AS there FROM other_pictures)
        SELECT here, there FROM here JOIN there ON here = there
        UNION ALL SELECT here, there FROM met JOIN here ON here = one JOIN there ON there = other
        UNION ALL SELECT here, there FROM met JOIN here ON here = other JOIN there ON there = one"""
    )
    connection.execute(
        """CREATE TABLE found AS
        SELECT items.row, other_pictures.row AS other, true AS equal, 1::FLOAT AS cosine, NULL::FLOAT AS sscd
        FROM items JOIN other_pictures USING (pixels) JOIN distinct_pictures ON items.row = distinct_pictures.row"""
    )
    _find_alike(connection)
    if copies:
        open_parquet(connection, copies, "copied_there")
        connection.execute(
            """INSERT INTO found SELECT first, other, false, NULL, max(sscd) FROM copied_there JOIN exact USING (row)
            GROUP BY first, other"""
        )
    matched = """SELECT exact.row, items.id, others.id AS other, equal, cosine, best.sscd
        FROM (SELECT row AS first, other, equal, cosine, sscd
              FROM (SELECT row, other, bool_or(equal) AS equal, max(cosine) AS cosine, max(sscd) AS sscd
                    FROM found GROUP BY row, other)
              QUALIFY row_number() OVER
              (PARTITION BY row ORDER BY equal DESC, cosine DESC NULLS LAST, sscd DESC NULLS LAST, other) = 1) best
        JOIN exact USING (first) JOIN items ON items.row = exact.row JOIN others ON others.row = other
        ORDER BY exact.row"""
    write_query(connection, matched, target)
    (rows,) = counts(connection, f"SELECT count(*) FROM ({matched})")
    return rows


def _find_alike(connection: Any) -> None:
    """Add to `found` the pairs of different pictures, one of each set, that are one picture to the eye."""
    query = f"""SELECT a.row AS row, b.row AS other, x.embedding AS x, y.embedding AS y
        FROM crossing JOIN distinct_pictures a ON a.perceptual = here JOIN other_pictures b ON b.perceptual = there
        JOIN items x ON x.row = a.row JOIN others y ON y.row = b.row
        WHERE x.pixels <> y.pixels AND a.place <= {WINDOW} AND b.place <= {WINDOW}"""
    connection.execute("CREATE TABLE alike (row BIGINT, other BIGINT, equal BOOLEAN, cosine FLOAT)")
    reading = connection.cursor()  # or the query would end with the first insertion
    for batch in reading.sql(query).to_arrow_reader(8192):
        cosine = similarity(batch["x"].to_pylist(), batch["y"].to_pylist()) if len(batch) else np.zeros(0, np.float32)
        near = cosine >= SAME
        rows = {"row": batch["row"].to_numpy()[near], "other": batch["other"].to_numpy()[near]}
        insert(connection, "alike", pa.table(rows | {"equal": np.zeros(near.sum(), np.bool_), "cosine": cosine[near]}))
    connection.execute("INSERT INTO found SELECT *, NULL FROM alike")
