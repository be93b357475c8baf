"""Labelled prompts: what is read, and every mistake as one line that says where."""

from __future__ import annotations

import json

import pytest

from unmemorize.core.errors import UserError
from unmemorize.data.labels import read_labelled

TABLE = "caption;Memorized;kind;copies;cluster\nan owl;1;verbatim;30;a\na boat;0;;;b\nan owl;yes;;;\na kite;;word;;c\n"


def test_labels_are_read_with_what_else_is_known(tmp_path):
    """Any delimiter, any case; equal prompts once; an empty label is neither class."""
    path = tmp_path / "labelled.csv"
    path.write_text(TABLE)
    rows = [(p.text, p.memorable, p.kind, p.copies, p.cluster) for p in read_labelled(path)]
    assert rows == [
        ("an owl", True, "verbatim", 30, "a"),
        ("a boat", False, None, None, "b"),
        ("a kite", None, "word", None, "c"),
    ]


def test_json_lines_may_hold_numbers_and_booleans(tmp_path):
    path = tmp_path / "labelled.jsonl"
    rows = [{"text": "an owl", "label": True, "copies": 3}, {"text": "a boat", "label": 0}, {"text": "a kite"}]
    path.write_text("\n".join(json.dumps(row | {"label": row.get("label")}) for row in rows))
    assert [(p.text, p.memorable, p.copies) for p in read_labelled(path)] == [
        ("an owl", True, 3),
        ("a boat", False, None),
        ("a kite", None, None),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("caption,memorized\nan owl,1\n", "no ordinary prompt in it"),
        ("caption,memorized\nan owl,0\n", "no memorized prompt in it"),
        ("caption,memorized\n", "no memorized prompt in it"),
        ("caption,memorized\nan owl,perhaps\n", "row 1: memorized is 'perhaps': write 1 or 0"),
        ("caption,memorized\nan owl,1\nan owl,0\n", "row 2: has another label"),
        ("caption,memorized\n ,1\n", "row 1: no prompt in it"),
        ("caption,known\nan owl,1\n", "row 1: no column named memorized or label"),
        ("n,memorized\nan owl,1\n", "row 1: no column named prompt, caption, text: it has n, memorized"),
        ("caption,memorized,copies\nan owl,1,many\n", "row 1: copies is 'many': write a number"),
        ("caption,memorized,copies\nan owl,1,99999999999999999999\n", "write a number below a billion"),
        ('caption,memorized\n"an owl,1\n', "quotes that do not match"),
    ],
)
def test_a_mistake_says_where_it_is(text, message, tmp_path):
    path = tmp_path / "labelled.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        read_labelled(path)
    assert str(error.value).startswith(str(path))


def test_captions_alone_have_no_labels(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("an owl\n")
    with pytest.raises(UserError, match="labels stand in a table"):
        read_labelled(path)
