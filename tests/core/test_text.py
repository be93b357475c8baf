"""Words of captions in any script."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmemorize.core.text import normalise, spans, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Oden,  GADGET's ﬁne", ["oden", "gadget's", "fine"]),
        ("Straße STRASSE", ["strasse", "strasse"]),
        ("ＦＵＬＬ　ｗｉｄｔｈ", ["full", "width"]),
        ("e\u0301a", ["éa"]),
        ("منارة قديمة", ["منارة", "قديمة"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("서울의 밤", ["서울의", "밤"]),
        ("古い灯台", ["古い", "い灯", "灯台"]),
        ("猫cat猫", ["猫", "cat", "猫"]),
        ("🦉 an owl 🌅", ["🦉", "an", "owl", "🌅"]),
        (" ,;:", []),
    ],
)
def test_words_of_any_script(text, expected):
    """Words where spaces divide them, pairs of characters where they do not, compatibility forms unified."""
    assert words(normalise(text)) == expected


@given(st.text(max_size=40))
def test_any_text_has_words_and_spans_that_lie_in_it(text):
    """Nothing raises; spans are in order, within the text, and never overlap."""
    words(normalise(text))
    ends = [0, *(edge for span in spans(text) for edge in span)]
    assert ends == sorted(ends)
    assert ends[-1] <= len(text)


@given(st.text(max_size=40))
def test_normalising_twice_is_normalising_once(text):
    """A normal form is its own."""
    assert normalise(normalise(text)) == normalise(text)
