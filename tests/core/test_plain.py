"""Hostile text in every place that shows it: a terminal, JSON, pages, Markdown."""

from __future__ import annotations

import io
import json
import re
import unicodedata

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

from unmemorize.cli import terminal
from unmemorize.core.plain import markdown, printable, shortened, to_json, well_formed

ESCAPES = "\x1b]0;owned\x07\x1b[2Jvolcano\r\n\x9b2J\u202eevil\u2028\udcff"
KEPT = "日本語の火山 بركان أحمر 👩🏽‍🚀 \u200cé [red]owl[/red] \\"


def acting(text):
    """Characters by which a text acts on a terminal, by Unicode's own categories."""
    directions = {"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"}
    categories = {"Cc", "Zl", "Zp", "Cs"}
    return [c for c in text if unicodedata.category(c) in categories or unicodedata.bidirectional(c) in directions]


@given(st.text())
def test_printable_text_acts_on_nothing(text):
    """Nothing is left by which a text could act, and what acts on nothing stays as it is."""
    shown = printable(text)
    assert acting(shown) == []
    if not acting(text):
        assert re.sub("[\ufffe\uffff]", "", text) == shown.replace("\\ufffe", "").replace("\\uffff", "")


def test_scripts_and_markup_are_shown_as_written():
    """Joined emoji, Arabic, what looks like markup: none of it is an escape."""
    assert printable(KEPT) == KEPT
    assert printable("\x1b[2J\n") == "\\x1b[2J\\n"


@given(st.text("abcdef", max_size=40), st.integers(1, 30))
def test_shortened_text_is_as_long_as_asked(text, most):
    """Its ends are those of the text, with a mark between them where something was left out."""
    short = shortened(text, most)
    assert len(short) == min(len(text), most)
    head, mark, tail = short.partition("…")
    assert bool(mark) == (len(text) > most)
    assert text.startswith(head)
    assert text.endswith(tail)


@given(st.recursive(st.floats() | st.text() | st.none(), lambda v: st.lists(v) | st.dictionaries(st.text(), v)))
def test_json_is_json(value):
    """A strict parser reads back the value, with null for what is not finite; YAML reads the same, and nothing acts."""

    def strict(name):
        raise ValueError(name)

    text = to_json(value)
    assert acting(text) == []
    assert to_json(json.loads(text, parse_constant=strict)) == text


def test_json_keeps_the_value():
    """Texts stay whole, whatever they hold; numbers that are not finite become null at any depth."""
    assert json.loads(to_json({"a": [ESCAPES, 0.5], "b": (float("nan"), {"c": float("inf")})})) == {
        "a": [ESCAPES, 0.5],
        "b": [None, {"c": None}],
    }
    assert yaml.safe_load(to_json({"name": "🦉\0\ufffe\x7f\n---\n"}, indent=1)) == {"name": "🦉\0\ufffe\x7f\n---\n"}


def test_pages_hold_no_nul():
    """NUL, halves of characters and the like become replacement characters; lines and tabs stay."""
    assert well_formed("a\0b\x1bc\udcff\td\n") == "a\ufffdb\ufffdc\ufffd\td\n"


@pytest.mark.parametrize(
    "text",
    [
        "<img src=x onerror=alert(1)>",
        "[a](javascript:alert(1)) ![b](http://x.example/y.png)",
        "https://x.example www.x.example a@x.example",
        "`code` *a* _b_ ~c~ | cell | # head & &lt;b&gt; $x$",
        "a\r\n\r\n<script>\u2028b",
    ],
)
def test_markdown_says_only_what_the_text_says(text):
    """Read by a Markdown parser with tables and bare links, the text is one paragraph without any markup."""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("gfm-like", {"linkify": False})
    tokens = parser.parse(markdown(text))
    inline = [token for token in tokens if token.type == "inline"]
    assert [token.type for token in tokens] == ["paragraph_open", "inline", "paragraph_close"]
    assert {child.type for child in inline[0].children} <= {"text", "text_special"}
    said = "".join(child.content for child in inline[0].children)
    assert said.split() == text.split()


def test_bare_links_are_no_links():
    """What the Hub would make a link of has a backslash in it."""
    assert markdown("https://x.example www.x.example a@x.example") == r"https\://x.example www\.x.example a\@x.example"


@pytest.fixture
def screen(monkeypatch):
    """A console that takes itself for a terminal without colours, and what reached it."""
    file = io.StringIO()
    monkeypatch.setattr(terminal, "out", Console(file=file, force_terminal=True, color_system=None, width=2000))
    return file


def test_a_line_stays_one_line(screen):
    """Escapes, line breaks and markup in a name are shown, not done."""
    terminal.say(f"report: {ESCAPES}[red]x[/red][/]", to=terminal.out)
    assert acting(screen.getvalue()[:-1]) == []
    assert "[red]x[/red][/]" in screen.getvalue()
    assert "\\x1b[2Jvolcano" in screen.getvalue()


def test_long_names_are_shortened_on_a_terminal_alone(screen):
    """A name of a thousand letters leaves the remedy readable; a pipe gets it whole."""
    terminal.say(f"error: {'a' * 1000}: no such file: name another", to=terminal.out)
    assert len(screen.getvalue()) < 300
    assert screen.getvalue().endswith("no such file: name another\n")
    piped = io.StringIO()
    terminal.say("a" * 1000, to=Console(file=piped))
    assert len(piped.getvalue()) == 1001


def test_cells_are_text(screen):
    """Markup in a prompt is shown as it is written, with its escapes made visible."""
    table = Table("prompt")
    terminal.add_row(table, "[/] [bold]owl[/bold] \x1b[2J\n\\")
    terminal.out.print(table)
    assert "[/] [bold]owl[/bold] \\x1b[2J\\n\\" in screen.getvalue()
    assert "\x1b" not in screen.getvalue()
