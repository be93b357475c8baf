"""Type B triggers: a word or phrase repeated inside one caption, and captions that differ in one slot."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from unmemorize.data.database import counts, group_hashes, rows
from unmemorize.data.words import CAPTIONS, LEVEL, LONGEST, Trigger, concentrated, hashed, written
from unmemorize.metrics.discovery import false_discovery, hypergeometric_tail

LONG = 64  # words of the longest caption that is looked at for a slot
SLOT = "▢"  # what stands for the slot of a template


def repeated_words(connection: Any) -> list[Trigger]:
    """Words and phrases said more often in a caption than chance would, the most significant first.

    Chance deals all that the captions say to them anew: each keeps its length, each word its number. The p-value is the
    probability that any caption then says the word as strikingly: as often in as few words, or more often in more. It
    is a sum over all captions, and adjusted for all words and phrases that are said twice, together.

    Paper: Naseh, Roh and Houmansadr 2023 name duplication at the level of words; only the abstract was read.
    Differs: the definition, the test and the thresholds are ours.
    """
    repeats: list[dict[str, Any]] = []
    tested = 0
    for n in range(1, LONGEST + 1):
        candidates = [r for r in rows(connection, _repeats(n)) if len(set(r["gram"].split(" "))) == n]
        (in_two_captions,) = counts(connection, f"SELECT count(*) FROM grams{n}")
        tested += in_two_captions + sum(r["holders"] == 1 for r in candidates)
        repeats += _with_chance(candidates, _lengths(connection, n))
    triggers = _significant(repeats, tested)
    longer = {(t.word, t.captions) for t in triggers}
    kept = [t for t in triggers if not _part_of_longer(t, longer)]
    return sorted(kept, key=lambda t: (t.p_value, -t.lift, t.word))


def _repeats(n: int) -> str:
    """SQL: for every gram that a caption says twice, the caption where that is most striking.

    `rank` packs its times (the more the better), its length (the shorter the better) and its group into one number,
    whose minimum costs less than that of a list. A sorted caption shows its repeats side by side.
    """
    return f"""WITH sorted AS (SELECT cap, grp, list_sort({hashed(n)}) AS grams FROM captions),
        again AS (SELECT cap, grp, len(grams) AS size, unnest(list_transform(list_filter(
                      range(2, len(grams) + 1), lambda i: grams[i] = grams[i - 1]), lambda i: grams[i])) AS gram
                  FROM sorted),
        repeats AS (SELECT cap, grp, size, gram, count(*) + 1 AS times FROM again GROUP BY cap, grp, size, gram),
        worst AS (SELECT gram, count(*) AS captions, count(DISTINCT grp) AS image_groups, sum(times - 1) AS extra,
                  min(((1048576 - times)::HUGEINT << 84) + (size::HUGEINT << 64) + grp) AS rank
                  FROM repeats GROUP BY gram),
        largest AS (SELECT gram, max(inside) AS inside FROM
                    (SELECT gram, grp, count(*) AS inside FROM repeats GROUP BY gram, grp) GROUP BY gram),
        named AS (SELECT gram, min(cap) AS cap FROM repeats GROUP BY gram),
        words AS (SELECT gram, {written(n)}[list_position({hashed(n)}, gram)] AS word
                  FROM named JOIN captions USING (cap))
        SELECT word AS gram, worst.captions, image_groups, inside, (1048576 - (rank >> 84))::BIGINT AS times,
               ((rank >> 64) & 1048575)::BIGINT AS size, (rank & 18446744073709551615)::BIGINT AS grp,
               (coalesce(grams{n}.captions, 1) + extra)::BIGINT AS total, coalesce(grams{n}.captions, 1) AS holders
        FROM worst JOIN largest USING (gram) JOIN words USING (gram) LEFT JOIN grams{n} USING (gram) ORDER BY word"""


def _lengths(connection: Any, n: int) -> list[tuple[int, int]]:
    """Every length of a caption, in grams, and how many captions have it."""
    query = f"SELECT len({hashed(n)}) AS size, count(*) AS captions FROM captions GROUP BY size ORDER BY size"
    return [(row["size"], row["captions"]) for row in rows(connection, query)]


def _with_chance(repeats: list[dict[str, Any]], lengths: list[tuple[int, int]]) -> list[dict[str, Any]]:
    """The repeats with their `lift` and their `p`, before it is adjusted."""
    times, size, total = (np.array([r[name] for r in repeats], np.int64) for name in ("times", "size", "total"))
    said = sum(length * captions for length, captions in lengths)
    p = np.zeros(len(repeats))
    for length, captions in lengths:
        as_striking = times + (length > size)  # a longer caption has to say it once more
        p += captions * hypergeometric_tail(as_striking, total, length, said)
    lift = times * said / (size * total)
    return [r | {"lift": float(x), "p": float(y)} for r, x, y in zip(repeats, lift, p.clip(max=1), strict=True)]


def _significant(repeats: list[dict[str, Any]], tested: int) -> list[Trigger]:
    adjusted = false_discovery(np.array([r["p"] for r in repeats]), tested)
    return [
        Trigger(
            word=r["gram"],
            kind="within",
            captions=r["captions"],
            image_groups=r["image_groups"],
            concentration=r["inside"] / r["captions"],
            lift=r["lift"],
            p_value=float(q),
            group=r["grp"],
        )
        for r, q in zip(repeats, adjusted, strict=True)
        if q <= LEVEL
    ]


def _part_of_longer(t: Trigger, longer: set[tuple[str, int]]) -> bool:
    return any(f" {t.word} " in f" {word} " and word != t.word and n == t.captions for word, n in longer)


def caption_templates(connection: Any) -> list[Trigger]:
    """Captions that differ in one word and go with one picture, the most significant first.

    Every caption of three words or more is hashed with each of its words left out; captions that meet there differ in
    that slot alone. The test is that of shared words.
    """
    # Only captions that share their group can be found; all are counted.
    (size,) = counts(connection, "SELECT coalesce(sum(len(hashes)), 0) FROM captions")
    left_out = f"SELECT gram, own FROM ({_slots('captions')})"
    enough = f"count(*) >= {CAPTIONS} AND min(own) < max(own)"
    alike = f"SELECT gram, count(*) AS captions FROM {{}} GROUP BY gram HAVING {enough}"
    group_hashes(connection, "slots", left_out, alike, size)
    total, groups, tested = counts(
        connection, "SELECT (SELECT count(*) FROM captions), (SELECT count(*) FROM sizes), (SELECT count(*) FROM slots)"
    )
    found = rows(
        connection,
        f"""SELECT gram::VARCHAR AS gram, captions, captions - shared AS image_groups, -largest[1] AS inside,
                  largest[2] AS grp, size, sample
        FROM (SELECT gram, sum(inside - 1)::BIGINT AS shared, min([-inside, grp]) AS largest, min(sample) AS sample
              FROM (SELECT gram, grp, count(*) AS inside, min([cap, place]) AS sample
                    FROM ({_slots("captions SEMI JOIN sizes USING (grp)")}) GROUP BY gram, grp HAVING count(*) > 1)
              GROUP BY gram)
        JOIN slots USING (gram) JOIN sizes ON sizes.grp = largest[2] ORDER BY gram""",
    )
    names = _names(connection, {f["gram"]: f["sample"] for f in found})
    return [replace(t, word=names[t.word]) for t in concentrated(found, "slot", total, groups, tested)]


def _slots(captions: str) -> str:
    """SQL: for each word of each caption, a hash of the caption without it, and the word's own."""
    return f"""SELECT hash(xor(whole, own), place, length) AS gram, cap, grp, place, own
        FROM (SELECT cap, grp, list_reduce(own, lambda x, y: xor(x, y)) AS whole, len(own) AS length,
                     unnest(own) AS own, generate_subscripts(own, 1) AS place
              FROM (SELECT cap, grp, list_transform(hashes, lambda h, i: hash(h, i)) AS own
                    FROM {captions} WHERE len(hashes) BETWEEN 3 AND {LONG}))"""


def _names(connection: Any, samples: dict[str, list[int]]) -> dict[str, str]:
    """A template's text: the words of one of its captions with the slot in place of one."""
    if not samples:
        return {}
    wanted = ", ".join(str(cap) for cap, _ in samples.values())
    held = rows(connection, f"SELECT cap, any_value(words) AS words FROM captions WHERE cap IN ({wanted}) GROUP BY cap")
    words = {row["cap"]: row["words"] for row in held}
    return {
        gram: " ".join(SLOT if i == place else w for i, w in enumerate(words[cap], 1))
        for gram, (cap, place) in samples.items()
    }
