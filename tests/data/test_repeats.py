"""Type B triggers: repeats against exact and simulated chance, slots in a corpus counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, hypergeom

from unmemorize.data.repeats import SLOT, caption_templates, repeated_words

OTHERS = [(f"a picture number{i} of a thing{i % 7} on a table", 100 + i) for i in range(60)]


def test_a_word_said_three_times_is_found_and_an_article_is_not(corpus):
    """`a` is said twice or thrice in every caption, as chance would; `thirty` is not."""
    found = repeated_words(corpus([("one thirty thirty thirty", 1), *OTHERS]))
    assert [(t.word, t.kind, t.captions, t.group) for t in found] == [("thirty", "within", 1, 0)]
    said = 4 + 60 * 9
    # As strikingly: three times in four words, or four times (of three: never) in one of the other captions.
    raw = hypergeom.sf(2, said, 3, 4)
    in_two_captions = len(["a", "picture", "of", "on", "table", *(f"thing{i}" for i in range(7))])
    phrases = len(["a picture", "of a", "on a", "a table", *(f"a thing{i}" for i in range(7)), *range(7)])
    longer = len([*range(7), *range(7), *range(7), "on a table"])  # of a thing, a thing on, thing on a
    tested = in_two_captions + phrases + longer + 1
    harmonic = sum(1 / i for i in range(1, tested + 1))
    assert found[0].lift == pytest.approx(3 / (4 * 3 / said))
    # The article's p-value is larger, so this one is first of all that were tested.
    assert found[0].p_value == pytest.approx(raw * tested * harmonic, rel=1e-6)


def test_a_word_twice_in_all_and_both_in_one_caption(corpus):
    """A thousand captions of ten words: the chance that both fall into one is 9 of 9,999."""
    captions = [[f"w{i}x{k}" for k in range(10)] for i in range(1000)]
    captions[0][3] = captions[0][7] = "kite"
    (found,) = repeated_words(corpus([(" ".join(words), i) for i, words in enumerate(captions)]))
    assert found.p_value == pytest.approx(9 / 9999, rel=1e-9)  # no other word is said twice, so there is one test


def test_the_p_value_is_that_of_simulated_chance(corpus):
    """Captions of 3 to 30 words dealt anew: how often any says the word as often in as few words, or more often."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 31, 60)
    captions = [[f"w{i}x{k}" for k in range(length)] for i, length in enumerate(lengths)]
    for i, k in ((0, 1), (0, 2), (0, 0), (5, 0), (9, 1), (20, 0)):
        captions[i][k] = "kite"
    (found,) = repeated_words(corpus([(" ".join(words), i) for i, words in enumerate(captions)]))
    caption = np.repeat(np.arange(60), lengths)
    draws = 20_000
    as_striking = 0
    for _ in range(draws):
        times = np.bincount(caption[rng.choice(len(caption), 6, replace=False)], minlength=60)
        as_striking += bool(((times > 3) | ((times == 3) & (lengths <= lengths[0]))).any())
    error = (found.p_value / draws) ** 0.5
    assert found.p_value > 20 / draws
    assert as_striking / draws == pytest.approx(found.p_value, abs=4 * error)


@pytest.mark.parametrize(("captions", "vocabulary", "length"), [(2000, 500, 10), (500, 2000, 30)])
def test_independent_words_give_no_trigger(captions, vocabulary, length, corpus):
    """Every trigger would be false; at most one corpus of twenty may have one, and of six none or one."""
    weights = 1 / np.arange(1, vocabulary + 1)
    false = 0
    for seed in range(6):
        rng = np.random.default_rng(seed)
        words = rng.choice(vocabulary, (captions, length), p=weights / weights.sum())
        rows = [(" ".join(f"w{word}" for word in caption), i) for i, caption in enumerate(words)]
        false += bool(repeated_words(corpus(rows)))
    assert false <= binom.ppf(0.99, 6, 0.05)


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
