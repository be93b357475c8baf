"""Which words of a prompt make the model copy: the prompt taken apart, moved, repeated, against random words."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from torch import Tensor

from unmemorize.core.methods import Subject
from unmemorize.core.records import Interval
from unmemorize.core.results import Match
from unmemorize.core.sample import ROWS, first_conditional, first_unconditional, generate
from unmemorize.core.text import normalise, spans
from unmemorize.metrics.ranking import rate_interval

SHARE = 0.5  # a trigger: prompts that hold the word copy on more than this share of seeds,
MARGIN = 0.1  # and without it on less than this
CONTROLS = 2  # random texts of each length


@dataclass(frozen=True)
class Variant:
    """A text made from a prompt: full, word, bigram, without, moved, repeated or random.

    `word` is what it is about, normalised; `times` how often the word is said, of a random text its number of words.
    """

    kind: str
    word: str
    text: str
    times: int = 1


@dataclass(frozen=True)
class Outcome:
    """What a text did: its noise magnitude, the mean over seeds, and how many of its pictures were copies.

    `mirrored` of the copies are copies of a mirror image.
    """

    magnitude: float
    copies: int
    seeds: int
    mirrored: int = 0


@dataclass(frozen=True)
class WordEffect:
    """What a word does: copy rates of the `prompts` that hold it, of the same without it, and of the word elsewhere.

    `alone`, `moved` (into unrelated prompts) and `random` (as many random words) are None where nothing was tried.
    """

    word: str
    prompts: int
    holding: Interval
    without: Interval
    alone: Interval | None
    moved: Interval | None
    random: Interval | None
    magnitude_holding: float
    magnitude_without: float
    trigger: bool


def variants(
    prompt: str, *, contexts: Sequence[str] = (), pool: Sequence[str] = (), repeats: int = 3, seed: int = 0
) -> list[Variant]:
    """Every text to try for a prompt.

    Args:
        prompt: The prompt; a word said twice is one word, taken out at both places.
        contexts: Unrelated prompts that each word is appended to.
        pool: Words that random texts of one word, of two, and of the prompt's length are drawn from.
        repeats: How often each word is said at most.
        seed: Draws the random words.
    """
    places = list(spans(prompt))
    names = [normalise(prompt[a:b]) for a, b in places]
    texts = [Variant("full", "", prompt)]
    for word in dict.fromkeys(names):
        own = [place for place, name in zip(places, names, strict=True) if name == word]
        as_written = prompt[slice(*own[-1])]
        texts.append(Variant("word", word, as_written))
        texts.append(Variant("without", word, without(prompt, own)))
        texts += [Variant("moved", word, f"{context}, {as_written}") for context in contexts]
        texts += [Variant("repeated", word, again(prompt, own[-1], k), k) for k in range(2, repeats + 1)]
    for (a, _), (_, b) in pairwise(places):
        texts.append(Variant("bigram", normalise(prompt[a:b]), prompt[a:b]))
    return texts + _random_texts(sorted({1, 2, len(places)} - {0}), pool, seed)


def without(prompt: str, places: Sequence[tuple[int, int]]) -> str:
    """The prompt with some of its words taken out, and the commas and spaces they leave behind."""
    for start, end in reversed(places):
        prompt = prompt[:start] + prompt[end:]
    tidy = re.sub(r"\s+(?=[,.;:!?])|([,;:])(?=\s*[,;:])", "", re.sub(r"\s+", " ", prompt))
    return tidy.strip(" ,;:")


def words_of(prompt: str) -> list[tuple[int, int]]:
    """The spans of a prompt's words: whatever stands between white space."""
    return [match.span() for match in re.finditer(r"\S+", prompt)]


def occurrences(prompt: str, place: tuple[int, int]) -> list[tuple[int, int]]:
    """Every place where the word at `place` is said, in any case, without the punctuation around it."""
    start, end = _bare(prompt, place)
    word = normalise(prompt[start:end])
    places = []
    for other in words_of(prompt):
        start, end = _bare(prompt, other)
        if normalise(prompt[start:end]) == word:
            places.append((start, end))
    return places


def _bare(prompt: str, place: tuple[int, int]) -> tuple[int, int]:
    """The part of a word between its first and its last letter; all of it where it has none."""
    start, end = place
    letters = list(spans(prompt[start:end]))
    return (start + letters[0][0], start + letters[-1][1]) if letters else place


def again(prompt: str, place: tuple[int, int], times: int) -> str:
    """The prompt with the word at `place` said `times` times."""
    start, end = place
    word = prompt[start:end]
    # A character of a script without spaces is a word of its own, and follows itself without one.
    space = "" if end - start == 1 and ord(word) > 0xE00 else " "
    return prompt[:end] + (space + word) * (times - 1) + prompt[end:]


def _random_texts(lengths: Sequence[int], pool: Sequence[str], seed: int) -> list[Variant]:
    """Random texts of so many words each; none without words to draw from."""
    if not pool:
        return []
    rng = np.random.default_rng(seed)
    texts = []
    for count in np.repeat(lengths, CONTROLS).tolist():
        drawn = rng.choice(len(pool), count, replace=len(pool) < count)
        texts.append(Variant("random", "", " ".join(pool[i] for i in drawn), count))
    return texts


def measure(
    subject: Subject,
    texts: Sequence[str],
    match: Callable[[Tensor], Sequence[Match]],
    *,
    seeds: Sequence[int],
) -> list[Outcome]:
    """Score and generate each text at each seed; `match` says of pictures (n, 3, h, w) which are copies.

    The magnitude is that of the first sampling step.

    Paper: Wen et al. 2024 for the magnitude.
    """
    model = subject.model
    cond = model.encode(texts)
    empty = first_unconditional(model, seeds=seeds, steps=subject.steps)
    first = first_conditional(model, cond, empty, steps=subject.steps)
    scores = first.gap(empty.repeated(len(texts))).reshape(len(texts), len(seeds)).mean(1).tolist()
    rows, every = cond.repeat(len(seeds)), list(seeds) * len(texts)
    matches: list[Match] = []
    for start in range(0, len(rows), ROWS):
        part = slice(start, start + ROWS)
        matches += match(generate(model, rows[part], seeds=every[part], sampler=subject.sampler))
    outcomes = []
    for k, score in enumerate(scores):
        copies = [found for found in matches[k * len(seeds) : (k + 1) * len(seeds)] if found.copied]
        outcomes.append(Outcome(score, len(copies), len(seeds), sum(copy.mirrored for copy in copies)))
    return outcomes


def word_effects(
    tried: Mapping[str, Sequence[Variant]],
    outcomes: Mapping[str, Outcome],
    *,
    share: float = SHARE,
    margin: float = MARGIN,
) -> list[WordEffect]:
    """What every word of the prompts does, those that make the model copy first.

    `tried` holds each prompt's variants, `outcomes` the outcome of each text. A word is a trigger when the prompts that
    hold it copy on more than `share` of their seeds and the same prompts without it on less than `margin`.
    Intervals are over texts, not pictures.

    Paper: Naseh, Roh and Houmansadr 2023 name words as triggers; only the abstract was read.
    Differs: the texts that are tried and the rule are ours.
    """
    words: set[str] = set()
    for texts in tried.values():
        words |= _removable(texts)
    effects = [_effect(word, tried, outcomes, share, margin) for word in sorted(words)]
    return sorted(effects, key=lambda e: (not e.trigger, e.without.value - e.holding.value, e.word))


def _removable(texts: Sequence[Variant]) -> set[str]:
    """The words of the prompt that these variants are of: each was left out in one of them."""
    return {variant.word for variant in texts if variant.kind == "without"}


def _effect(
    word: str, tried: Mapping[str, Sequence[Variant]], outcomes: Mapping[str, Outcome], share: float, margin: float
) -> WordEffect:
    by_kind: dict[str, list[Outcome]] = defaultdict(list)
    longest: list[Outcome] = []  # as many random words as the prompt has
    prompts = [texts for texts in tried.values() if word in _removable(texts)]
    for texts in prompts:
        most = max((variant.times for variant in texts if variant.kind == "random"), default=0)
        for variant in texts:
            if variant.kind in ("full", "word", "without", "moved") and variant.word in (word, ""):
                by_kind[variant.kind].append(outcomes[variant.text])
            if variant.kind == "random" and variant.times == most:
                longest.append(outcomes[variant.text])
    holding, removed = _rate(by_kind["full"]), _rate(by_kind["without"])
    assert holding is not None  # every prompt is tried as it is,
    assert removed is not None  # and without each of its words
    return WordEffect(
        word=word,
        prompts=len(prompts),
        holding=holding,
        without=removed,
        alone=_rate(by_kind["word"]),
        moved=_rate(by_kind["moved"]),
        random=_rate(longest),
        magnitude_holding=_mean_magnitude(by_kind["full"]),
        magnitude_without=_mean_magnitude(by_kind["without"]),
        trigger=holding.value > share and removed.value < margin,
    )


def _mean_magnitude(outcomes: Sequence[Outcome]) -> float:
    return float(np.mean([outcome.magnitude for outcome in outcomes]))


def _rate(outcomes: Sequence[Outcome]) -> Interval | None:
    return rate_interval([o.copies for o in outcomes], [o.seeds for o in outcomes]) if outcomes else None
