"""Type B triggers: repeats against the binomial tail, slots in a corpus counted by hand."""

from __future__ import annotations

import pytest
from scipy.stats import binom

from unmemorize.data.repeats import SLOT, caption_templates, repeated_words

OTHERS = [(f"a picture number{i} of a thing{i % 7} on a table", 100 + i) for i in range(60)]


def test_a_word_said_three_times_is_found_and_an_article_is_not(corpus):
    """`a` is said thrice in every caption, as chance would; `thirty` is not."""
    found = repeated_words(corpus([("one thirty thirty thirty", 1), *OTHERS]))
    assert [(t.word, t.kind, t.captions, t.group) for t in found] == [("thirty", "within", 1, 0)]
    said = 4 + 60 * 9
    rate = 1 / (said - 4 + 1)
    tested = 2 + 7 + 60 + len(["a", "picture", "of", "on", "table"])
    harmonic = sum(1 / i for i in range(1, tested + 1))
    raw = binom.sf(2, 4, rate)
    assert found[0].lift == pytest.approx(3 / (4 * rate))
    # The article's p-value is larger, so this one is first of all that were tested.
    assert found[0].p_value == pytest.approx(raw * tested * harmonic, rel=1e-6)


def test_a_repeated_phrase_is_reported_once(corpus):
    """The phrase, and not its words as well."""
    found = repeated_words(corpus([("red kite red kite red kite", 1), *OTHERS]))
    assert [t.word for t in found] in (["red kite"], ["kite red", "red kite"], ["red kite", "kite red"])


def test_captions_counted_over_pictures(corpus):
    """The same repeat over two pictures is two captions of two groups."""
    rows = [("oden oden oden", 1), ("oden oden oden", 2), ("oden oden oden", 1), *OTHERS]
    (found,) = repeated_words(corpus(rows))
    assert (found.captions, found.image_groups, found.concentration) == (2, 2, 0.5)


def test_captions_that_differ_in_one_slot(corpus):
    """One sentence, ten words in its slot, one picture; the same length elsewhere is another sentence."""
    rows = [(f"a phone case with {name} print", 1) for name in "abcdefghij"] + OTHERS
    found = caption_templates(corpus(rows))
    assert [(t.word, t.kind, t.captions, t.image_groups) for t in found] == [
        (f"a phone case with {SLOT} print", "slot", 10, 1)
    ]


def test_a_template_over_different_pictures_is_ordinary(corpus):
    """A sentence that names what is to be seen."""
    assert caption_templates(corpus([(f"a photo of {name} outside", i) for i, name in enumerate("abcdefghij")])) == []


def test_one_caption_over_many_pictures_is_no_template(corpus):
    """Nothing differs in any slot."""
    assert caption_templates(corpus([("a photo of it", i) for i in range(10)])) == []


def test_no_rows_at_all(corpus):
    """An empty corpus holds nothing."""
    empty = corpus([])
    assert repeated_words(empty) == caption_templates(empty) == []
