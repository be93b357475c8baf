"""The prompt probe: what it tries, and whom it blames, against models whose triggers are known."""

from __future__ import annotations

import pytest

from unmemorize.core.methods import Subject
from unmemorize.core.results import Match
from unmemorize.core.sample import Sampler
from unmemorize.explain.words import (
    Outcome,
    Variant,
    again,
    measure,
    occurrences,
    variants,
    without,
    word_effects,
    words_of,
)


def texts(found, kind):
    return [v.text for v in found if v.kind == kind]


def test_every_kind_of_variant_of_a_prompt():
    """Words alone, bigrams, leave-one-out, moved, repeated, random controls of equal length."""
    found = variants("Oden, gadget", contexts=["a kite"], pool=["owl", "fence"], repeats=3)
    assert texts(found, "full") == ["Oden, gadget"]
    assert texts(found, "word") == ["Oden", "gadget"]
    assert texts(found, "bigram") == ["Oden, gadget"]
    assert texts(found, "without") == ["gadget", "Oden"]
    assert texts(found, "moved") == ["a kite, Oden", "a kite, gadget"]
    assert texts(found, "repeated") == [
        "Oden Oden, gadget",
        "Oden Oden Oden, gadget",
        "Oden, gadget gadget",
        "Oden, gadget gadget gadget",
    ]
    assert sorted(len(t.split()) for t in texts(found, "random")) == [1, 1, 2, 2]
    assert {word for t in texts(found, "random") for word in t.split()} <= {"owl", "fence"}
    assert [v.word for v in found if v.kind == "word"] == ["oden", "gadget"]


def test_a_word_said_twice_is_taken_out_twice():
    """Leaving one of them in would not remove the word."""
    found = variants("kite, red Kite, kite")
    assert [v.word for v in found if v.kind == "without"] == ["kite", "red"]
    assert texts(found, "without") == ["red", "kite, Kite, kite"]


def test_what_a_removed_word_leaves_behind_is_tidied():
    """No double spaces, no comma before a comma or at an end."""
    assert without("a, b , c", [(3, 4)]) == "a, c"
    assert without("one two three", [(4, 7)]) == "one three"
    assert without("one", [(0, 3)]) == ""


def test_scripts_without_spaces_are_taken_apart_by_character():
    """A character repeats without a space between."""
    assert texts(variants("灯台"), "without") == ["台", "灯"]
    assert again("灯台", (1, 2), 3) == "灯台台台"
    assert again("a b", (0, 1), 2) == "a a b"


@pytest.mark.parametrize("prompt", ["", " ,;", "🦉"])
def test_prompts_without_words(prompt):
    """They are tried as they are."""
    assert variants(prompt)[0] == Variant("full", "", prompt)


def test_random_texts_are_the_same_for_the_same_seed():
    """Controls are drawn, not chosen anew."""
    pool = [f"w{i}" for i in range(50)]
    assert variants("a b c", pool=pool, seed=1) == variants("a b c", pool=pool, seed=1)
    assert variants("a b c", pool=pool, seed=1) != variants("a b c", pool=pool, seed=2)


PROMPTS = ("oden, gadget", "kite, gadget", "owl, fence")


def effects(rule, **options):
    """Effects of every word of three prompts under a model that copies the texts `rule` names."""
    tried = {p: variants(p, contexts=["a harbour"], pool=["lamp", "river"]) for p in PROMPTS}
    found = {v.text for variant in tried.values() for v in variant}
    outcomes = {text: Outcome(1.0 + rule(text), 4 if rule(text) else 0, 4) for text in found}
    return {e.word: e for e in word_effects(tried, outcomes, **options)}


def test_a_word_that_copies_wherever_it_stands_is_the_trigger():
    """It alone is blamed; the words beside it do not matter, and random words copy nothing."""
    found = effects(lambda text: "gadget" in text)
    assert [word for word, e in found.items() if e.trigger] == ["gadget"]
    gadget = found["gadget"]
    assert (gadget.prompts, gadget.holding.value, gadget.without.value) == (2, 1.0, 0.0)
    assert (gadget.alone.value, gadget.moved.value, gadget.random.value) == (1.0, 1.0, 0.0)
    assert gadget.magnitude_holding > gadget.magnitude_without
    assert found["oden"].without.value == 1.0


def test_a_caption_that_copies_only_whole_blames_each_of_its_words():
    """Removing either word stops the copying; neither copies when moved."""
    found = effects(lambda text: text == "owl, fence")
    assert [word for word, e in found.items() if e.trigger] == ["fence", "owl"]
    assert found["owl"].moved.value == 0.0


def test_a_model_that_always_or_never_copies_has_no_triggers():
    """Removing a word has to change something."""
    for always in (True, False):
        assert not [e for e in effects(lambda text, always=always: always).values() if e.trigger]


def test_the_rule_is_what_was_asked_for():
    """`share` is exceeded, `margin` is undercut."""
    rule = lambda text: "gadget" in text  # noqa: E731
    assert not effects(rule, share=1.0)["gadget"].trigger
    assert not effects(rule, margin=0.0)["gadget"].trigger


def judged(copied, *, mirrored=False):
    """A comparison that says so."""
    return Match("a.png", 0.1, 0.1, "verbatim" if copied else "none", mirrored)


def test_measured_on_a_model_that_holds_six_pictures(oracle):
    """The closed-form model makes the picture its prompt names: that, and nothing else, is a copy of it."""
    picture = oracle.decode(oracle.denoiser.images[:1].float())

    def match(images):
        return [judged((image - picture[0]).abs().mean() < 0.1, mirrored=True) for image in images]

    one, other = measure(Subject(oracle, Sampler(8, 1.0)), ["one", "other"], match, seeds=[0, 1])
    assert (one.copies, other.copies) == (2, 0)
    assert (one.mirrored, other.mirrored) == (2, 0)  # what is no copy is no mirrored one
    assert one.seeds == 2


def test_measuring_alone_or_together_is_the_same(tiny_model):
    """Outcomes do not depend on what else is measured."""
    check = lambda images: [judged(image.mean() > 0.5) for image in images]  # noqa: E731
    both = measure(Subject(tiny_model, Sampler(2)), ["a green bicycle", "an owl"], check, seeds=[0, 1])
    alone = measure(Subject(tiny_model, Sampler(2)), ["an owl"], check, seeds=[0, 1])
    assert both[1].magnitude == pytest.approx(alone[0].magnitude, rel=1e-4)
    assert both[1].copies == alone[0].copies
    assert both[1].seeds == 2


LEFT_OUT = {
    ("baguette bread, sweating", 2): "baguette bread",
    ("baguette bread, sweating", 1): "baguette, sweating",
    ("video camera camera camera", 2): "video",
    ("An owl, an OWL. On a fence", 3): "An, an. On a fence",
    ("owl — fence", 1): "owl fence",
    ("Emma’s <i>red</i> kite", 0): "<i>red</i> kite",
}


@pytest.mark.parametrize(("prompt", "number"), LEFT_OUT)
def test_a_word_is_left_out_wherever_it_is_said(prompt, number):
    """In any case and beside any punctuation, as somebody would type the rest."""
    assert without(prompt, occurrences(prompt, words_of(prompt)[number])) == LEFT_OUT[prompt, number]
