"""What to do about findings: how many rows are at stake, which to drop, which to caption anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from unmemorize.data.database import rows
from unmemorize.data.repeats import SLOT
from unmemorize.data.words import Trigger

SAMPLES = 6  # rows that stand for a finding in the report
# `recaption` says why a kept row's caption should change, or is null.
KEEP = """SELECT items.id, caption, reason AS recaption FROM items LEFT JOIN actions USING (row)
    WHERE (action IS NULL OR action = 'recaption') AND caption IS NOT NULL ORDER BY row"""


def collect_stakes(connection: Any, triggers: Sequence[Trigger]) -> list[dict[str, Any]]:
    """Make `stakes` (trigger, row): the rows of each trigger's group whose captions hold it; returns their counts.

    Each count is `rows`; `sample` holds some of the captions.
    """
    parts = [t.word.partition(SLOT) for t in triggers]
    table = pa.table(
        {
            "trigger": pa.array(range(len(triggers)), pa.int64()),
            "grp": pa.array([t.group for t in triggers], pa.int64()),
            "word": pa.array([t.word for t in triggers], pa.string()),
            "slot": pa.array([t.kind == "slot" for t in triggers], pa.bool_()),
            "head": pa.array([head for head, _, _ in parts], pa.string()),
            "tail": pa.array([tail for _, _, tail in parts], pa.string()),
            "size": pa.array([len(t.word.split(" ")) for t in triggers], pa.int64()),
        }
    )
    connection.register("triggers", table)
    connection.execute(
        """CREATE OR REPLACE TABLE stakes AS SELECT trigger, row, text, caption
        FROM (SELECT trigger, row, text, left(caption, 200) AS caption, word, slot, head, tail, size, words,
                     array_to_string(words, ' ') AS said
              FROM triggers JOIN pictures USING (grp) JOIN items USING (row))
        WHERE CASE WHEN slot THEN len(words) = size AND starts_with(said, head) AND ends_with(said, tail)
              ELSE contains(' ' || said || ' ', ' ' || word || ' ') END"""
    )
    connection.unregister("triggers")
    return rows(
        connection,
        f"""SELECT trigger, sum(held)::BIGINT AS rows, list(caption ORDER BY row)[1:{SAMPLES}] AS sample
        FROM (SELECT trigger, min(row) AS row, min_by(caption, row) AS caption, count(*) AS held
              FROM stakes GROUP BY trigger, text)
        GROUP BY trigger ORDER BY trigger""",
    )


def collect_actions(connection: Any, triggers: Sequence[Trigger]) -> None:
    """Make `actions` (row, id, action, reason): what to do with each row that a finding touches.

    Of each group of pictures the first row is kept that has a caption, where any has one, and the others are dropped; a
    kept row whose caption holds a trigger gets another caption.
    """
    words = pa.table(
        {
            "trigger": pa.array(range(len(triggers)), pa.int64()),
            "word": pa.array([t.word for t in triggers], pa.string()),
        }
    )
    connection.register("trigger_words", words)
    connection.execute(
        """CREATE TABLE kept AS SELECT grp, id AS name, row AS kept
        FROM (SELECT grp, min([(text IS NULL)::BIGINT, row])[2] AS row
              FROM pictures JOIN items USING (row) GROUP BY grp) JOIN items USING (row);
        CREATE TABLE actions AS SELECT row, id, 'drop' AS action, 'same picture as ' || name AS reason
        FROM pictures JOIN items USING (row) JOIN kept USING (grp) WHERE row <> kept
        UNION ALL SELECT row, any_value(id), 'recaption',
                         'holds ' || string_agg(word, ', ' ORDER BY trigger)
        FROM stakes JOIN trigger_words USING (trigger) JOIN items USING (row) JOIN kept ON row = kept
        GROUP BY row"""
    )
    connection.unregister("trigger_words")


def group_rows(connection: Any, groups: Sequence[int]) -> dict[int, list[dict[str, Any]]]:
    """Some rows (row, id, caption) of each of a few groups of pictures, different pixels first."""
    if not groups:
        return {}
    found = rows(
        connection,
        f"""SELECT grp, row, id, left(caption, 300) AS caption
        FROM (SELECT grp, row, row <> first AS again FROM pictures WHERE grp IN ({", ".join(map(str, groups))})
              QUALIFY row_number() OVER (PARTITION BY grp ORDER BY again, row) <= {SAMPLES})
        JOIN items USING (row) ORDER BY grp, again, row""",
    )
    return {g: [r for r in found if r["grp"] == g] for g in groups}
