"""Type A triggers in corpora small enough to count by hand, p-values against scipy."""

from __future__ import annotations

import random
from contextlib import contextmanager

import numpy as np
import pytest
from scipy.stats import hypergeom

from unmemorize.core.run import scratch
from unmemorize.data.database import arrow
from unmemorize.data.repeats import caption_templates, repeated_words
from unmemorize.data.words import CAPTIONS, shared_words

OTHERS = [(f"picture number{i} of thing{i % 7}", 100 + i) for i in range(40)]


def test_a_hand_counted_corpus(corpus):
    """Six captions of one picture share a word that one other caption holds, too."""
    names = ["oden", "kite", "owl", "lamp", "fence", "river"]
    rows = [(f"{name}, gadget", 1) for name in names] + [("harbour, gadget", 2)] + OTHERS
    (found,) = shared_words(corpus(rows))
    assert (found.word, found.kind, found.captions, found.image_groups, found.group) == ("gadget", "across", 7, 2, 0)
    assert found.concentration == pytest.approx(6 / 7)
    assert found.lift == pytest.approx((6 / 7) / (6 / 47))
    # One group holds more than one caption; tested are the grams of three captions or more.
    grams = [g for n in (1, 2, 3) for g in _grams(rows, n)]
    tested = [g for g in set(grams) if grams.count(g) >= CAPTIONS]
    harmonic = sum(1 / i for i in range(1, len(tested) + 1))
    raw = hypergeom.sf(5, len(rows), 6, 7)
    assert found.p_value == pytest.approx(raw * 1 * len(tested) * harmonic, rel=1e-6)


def _grams(rows, n):
    for caption, _ in rows:
        said = caption.replace(",", "").split()
        yield from {" ".join(said[i : i + n]) for i in range(len(said) - n + 1)}


def test_copies_of_one_caption_are_no_trigger(corpus):
    """A picture with one caption a hundred times is a duplicate: its words are in one caption."""
    assert shared_words(corpus([("a green bicycle", 1)] * 100 + OTHERS)) == []


def test_a_word_shared_by_captions_of_different_pictures_is_no_trigger(corpus):
    """Sharing a word is what captions do."""
    rows = [(f"{name}, gadget", i) for i, name in enumerate(["oden", "kite", "owl", "lamp", "fence", "river"])]
    assert shared_words(corpus(rows + OTHERS)) == []


def test_a_frequent_word_is_no_trigger_of_its_largest_group(corpus):
    """Six captions of one picture hold it, and so do forty others."""
    rows = [(f"name{i} thing", 1) for i in range(6)] + [(f"other{i} thing", 10 + i) for i in range(40)]
    assert not [t for t in shared_words(corpus(rows)) if t.word == "thing"]


def test_a_phrase_is_found_where_its_words_are_common(corpus):
    """`red` and `kite` are everywhere, `red kite` is one picture's."""
    rows = [(f"name{i} red kite", 1) for i in range(8)]
    rows += [(f"a{i} red b{i}", 10 + i) for i in range(20)] + [(f"c{i} kite d{i}", 50 + i) for i in range(20)]
    assert [t.word for t in shared_words(corpus(rows))] == ["red kite"]


def test_a_longer_phrase_says_nothing_more(corpus):
    """Of grams with the same captions the shortest are reported."""
    rows = [(f"name{i} umbra nocturna", 1) for i in range(8)] + OTHERS
    assert {t.word for t in shared_words(corpus(rows))} == {"umbra", "nocturna"}


def test_random_captions_hold_no_triggers(corpus):
    """Words dealt to pictures at random: of a thousand tested words none is called a trigger."""
    rng = random.Random(0)
    rows = [(" ".join(f"w{int(rng.paretovariate(0.8))}" for _ in range(6)), i // 4) for i in range(1200)]
    assert shared_words(corpus(rows)) == []


@pytest.mark.parametrize("word", ["灯台", "منارة", "маяк", "ประภาคาร", "🦉", "ﬁne", "GADGET"])
def test_triggers_of_any_script(corpus, word):
    """The word is found in its normal form, or through its pairs of characters."""
    from unmemorize.core.text import normalise, words

    rows = [(f"name{i} {word}", 1) for i in range(8)] + OTHERS
    found = {part for t in shared_words(corpus(rows)) for part in t.word.split()}
    assert found <= set(words(normalise(word)))
    assert found


def test_rows_without_pictures_are_groups_of_their_own(corpus):
    """Captions alone have duplicates and repeats, never words of one picture."""
    assert shared_words(corpus([(f"name{i} gadget", None) for i in range(20)])) == []


def test_no_rows_at_all(corpus):
    """An empty corpus holds nothing."""
    assert shared_words(corpus([])) == []


def test_words_counted_in_parts_are_those_counted_at_once(corpus, monkeypatch):
    """Rows of each table by the upper bits of their hash, grouped part by part: every count and every trigger."""
    rng = np.random.default_rng(1)
    rows = [(" ".join(f"w{i}" for i in rng.zipf(1.6, 9) % 300), i) for i in range(400)]
    rows += [(f"gadget w{i} w{i + 1} one", 1000) for i in range(12)]
    rows += [(f"the {word} stands on the hill", 2000) for word in ("lamp", "kite", "owl", "boat")]
    rows += [("thirty thirty thirty thirty", 3000)]

    def found():
        connection = corpus(rows)
        triggers = [stage(connection) for stage in (shared_words, repeated_words, caption_templates)]
        tables = [f"grams{n}" for n in (1, 2, 3)] + ["slots"]
        return triggers, [
            arrow(connection, f"SELECT gram, captions FROM {table} ORDER BY gram").to_pylist() for table in tables
        ]

    at_once = found()
    assert {t.kind for triggers in at_once[0] for t in triggers} == {"across", "within", "slot"}
    assert all(at_once[1])
    monkeypatch.setattr("unmemorize.data.database.GROUPED", 100)
    copies = []

    @contextmanager
    def quoted(folder):
        """A folder whose name has to be quoted in a query."""
        copies.append(folder)
        with scratch(folder) as made:
            (made / "it's").mkdir()
            yield made / "it's"

    monkeypatch.setattr("unmemorize.data.database.scratch", quoted)
    assert found() == at_once
    assert len(copies) == 5  # the database's own, and one for each table
