"""Type A triggers: words and n-grams that are shared by captions of one picture and rare elsewhere.

A caption counts once for each group of pictures it goes with: a picture with one caption a thousand times is a
duplicate, not a trigger.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import hypergeom

from unmemorize.data.database import counts, group_hashes, rows
from unmemorize.metrics.discovery import false_discovery

LONGEST = 3  # words of an n-gram
CAPTIONS = 3  # a word is tested if it is in so many captions: a number that says nothing of where they are
LEVEL = 0.05  # expected share of false ones among the triggers
CONCENTRATED = 0.5  # a trigger's captions fall into one group of pictures at least by this share


@dataclass(frozen=True)
class Trigger:
    """A word, phrase or template that ties captions to a picture.

    `kind` is across, within or slot. `captions` hold it, over `image_groups`; `concentration` is the share of them in
    the largest group, `group`; `lift` how many times that share exceeds the group's share of all captions; for kind
    within, how many times it is said over how often chance would. `p_value` is adjusted for all tests of its kind.
    """

    word: str
    kind: str
    captions: int
    image_groups: int
    concentration: float
    lift: float
    p_value: float
    group: int


def collect_captions(connection: Any) -> None:
    """Make `captions` (cap, grp, words) of `items` and `pictures`: each caption once for each group of pictures.

    Also `sizes` (grp, size), groups with two captions or more, and `grams1` to `grams3` (gram, captions): every n-gram
    of two captions or more, as a hash of 64 bits, and in how many it is.
    """
    connection.execute(
        """CREATE TABLE captions AS SELECT row AS cap, grp, words, list_transform(words, lambda w: hash(w)) AS hashes
        FROM items JOIN (SELECT min(row) AS row, grp FROM items JOIN pictures USING (row) WHERE text IS NOT NULL
                         GROUP BY text, grp)
        USING (row);
        CREATE TABLE sizes AS SELECT grp, count(*) AS size FROM captions GROUP BY grp HAVING count(*) > 1"""
    )
    for n in range(1, LONGEST + 1):
        (size,) = counts(connection, f"SELECT coalesce(sum(greatest(len(hashes) - {n - 1}, 0)), 0) FROM captions")
        said = f"SELECT unnest(list_distinct({hashed(n)})) AS gram FROM captions"
        found = "SELECT gram, count(*) AS captions FROM {} GROUP BY gram HAVING count(*) > 1"
        group_hashes(connection, f"grams{n}", said, found, size)


def hashed(n: int) -> str:
    """SQL for the list of a caption's n-grams, as hashes."""
    parts = ", ".join(f"hashes[i + {k}]" for k in range(n))
    return "hashes" if n == 1 else f"list_transform(range(1, len(hashes) - {n - 2}), lambda i: hash({parts}))"


def written(n: int) -> str:
    """SQL for the list of a caption's n-grams, as text."""
    parts = " || ' ' || ".join(f"words[i + {k}]" for k in range(n))
    return "words" if n == 1 else f"list_transform(range(1, len(words) - {n - 2}), lambda i: {parts})"


def shared_words(connection: Any) -> list[Trigger]:
    """Triggers of type A, the most significant first.

    Paper: Naseh, Roh and Houmansadr 2023 name duplication at the level of words; only the abstract was read.
    Differs: the definition, the test and the thresholds are ours.
    """
    total, groups = counts(connection, "SELECT (SELECT count(*) FROM captions), (SELECT count(*) FROM sizes)")
    tested, found = 0, []
    for n in range(1, LONGEST + 1):
        tested += counts(connection, f"SELECT count(*) FROM grams{n} WHERE captions >= {CAPTIONS}")[0]
        found += rows(connection, _concentration(n))
    return concentrated(found, "across", total, groups, tested)


def _concentration(n: int) -> str:
    """SQL: for every gram that two captions of one group share, where its captions are."""
    return f"""SELECT word AS gram, captions, captions - shared AS image_groups, -largest[1] AS inside,
               largest[2] AS grp, size
        FROM (SELECT gram, any_value(word) AS word, sum(inside - 1)::BIGINT AS shared,
                     min([-inside, grp]) AS largest
              FROM (SELECT gram, grp, any_value(word) AS word, count(*) AS inside
                    FROM (SELECT DISTINCT cap, grp, unnest({hashed(n)}) AS gram, unnest({written(n)}) AS word
                          FROM captions SEMI JOIN sizes USING (grp))
                    GROUP BY gram, grp HAVING count(*) > 1)
              GROUP BY gram)
        JOIN grams{n} USING (gram) JOIN sizes ON sizes.grp = largest[2]
        WHERE captions >= {CAPTIONS} ORDER BY word"""


def concentrated(found: list[dict[str, Any]], kind: str, total: int, groups: int, tested: int) -> list[Trigger]:
    """Those of `found` whose captions fall into one group of pictures, by more than chance.

    Chance deals the gram's captions to the `total` captions at random: hypergeometric, times the `groups` the largest
    was chosen from, then adjusted for the grams `tested`.
    """
    k, x, size = (np.array([f[name] for f in found], np.int64) for name in ("captions", "inside", "size"))
    p = np.minimum(hypergeom.sf(x - 1, total, size, k) * groups, 1.0)
    adjusted = false_discovery(p, tested)
    triggers = [
        Trigger(
            word=f["gram"],
            kind=kind,
            captions=f["captions"],
            image_groups=f["image_groups"],
            concentration=f["inside"] / f["captions"],
            lift=f["inside"] / f["captions"] * total / f["size"],
            p_value=float(q),
            group=f["grp"],
        )
        for f, q in zip(found, adjusted, strict=True)
        if q <= LEVEL and f["inside"] >= CONCENTRATED * f["captions"]
    ]
    return sorted(without_echoes(triggers), key=lambda t: (t.p_value, -t.lift, t.word))


def without_echoes(triggers: list[Trigger]) -> list[Trigger]:
    """Leave out a longer gram where a part of it is a trigger for the same pictures, and no less concentrated."""
    known = {(t.word, t.group): t.concentration for t in triggers}

    def echo(t: Trigger) -> bool:
        parts = t.word.split(" ")
        shorter = (" ".join(parts[i : i + n]) for n in range(1, len(parts)) for i in range(len(parts) - n + 1))
        return any(known.get((part, t.group), -1.0) >= t.concentration for part in shorter)

    return [t for t in triggers if not echo(t)]
