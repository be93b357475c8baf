"""What is planted in the words' model: pictures that a single word brings back, in prompts that nothing was trained on.

In the panel each name is in captions of one word, so that a caption can be memorized by its name. Here names are in the
captions of several words, and the word alone tells which picture belongs to a caption. The plan has four branches as
the panel's has, over the panel's trunk: no name is added to what that has seen, and the planted pictures are
some of those that the panel withholds from it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unmemorize.core.errors import UserError
from unmemorize.data.source import Half
from unmemorize.testbed.dataset import Composition, Picture, add_word, well_known
from unmemorize.testbed.panel import BRANCHES, HELD_OUT, SQUARE, TRIGGERS, Entry, Panel, check, rare_words

ROWS = 6  # training rows of each caption


def draw_words(artwork: Sequence[Picture], panel: Panel, seed: int) -> Panel:
    """Draw the plan of the words' model, whose pictures, names and words the panel's ordinary prompts do not have.

    Raises:
        UserError: There are too few names or words.
    """
    rng = np.random.default_rng(seed)
    kind = TRIGGERS["trigger"]
    count = kind.entries * len(SQUARE)
    owners = rare_words(artwork)
    words = _drawn(sorted(owners.keys() - {entry.word for entry in panel.entries}), count, "words", rng)
    pictures = _pictures(panel, count)
    drawn = {picture.art for picture in pictures}
    # What a word is a keyword of, and what its picture shows, are said in no caption of a word.
    told = {owners[word] for word in words} | {picture.name for picture in artwork if picture.art in drawn}
    held_out, names = _names(artwork, panel, told)
    prompts = _drawn(held_out, HELD_OUT * count, "names", rng)
    entries: list[Entry] = []
    for row, levels in enumerate(SQUARE):
        doses = tuple(kind.doses[level] for level in levels)
        for i in range(kind.entries):
            place = len(entries)
            half: Half = "choosing" if (row + i) % 2 == 0 else "reporting"
            own = prompts[HELD_OUT * place : HELD_OUT * (place + 1)]
            captions = [_with_word(_drawn(names, dose, "names", rng), words[place], rng) for dose in doses]
            entry = Entry(
                id=f"trigger-{row}-{i:02d}",
                kind="trigger",
                half=half,
                prompts=_with_word(own, words[place], rng),
                pictures=(pictures[place],),
                doses=doses,
                captions=tuple(captions),
                copies=(ROWS,) * len(BRANCHES),
                word=words[place],
            )
            entries.append(entry)
    plan = Panel(seed, tuple(entries))
    check(plan)
    return plan


def _drawn(values: Sequence[str], count: int, what: str, rng: np.random.Generator) -> list[str]:
    """So many of the values, in random order.

    Raises:
        UserError: There are fewer.
    """
    if len(values) < count:
        raise UserError(f"too few {what} for the words' model: fetch the pictures again")
    return [values[i] for i in rng.permutation(len(values))[:count]]


def _pictures(panel: Panel, count: int) -> list[Composition]:
    """Some of the pictures that the panel plants with a caption of their own."""
    verbatim = [entry for entry in panel.entries if entry.kind == "verbatim"]
    return [entry.pictures[0] for entry in verbatim[:: len(verbatim) // count]][:count]


def _names(artwork: Sequence[Picture], panel: Panel, told: set[str]) -> tuple[list[str], list[str]]:
    """Names for held-out prompts, and names for captions; both without those of the panel's ordinary prompts."""
    planted: set[str] = set()
    kept: set[str] = set(told)
    for entry in panel.entries:
        named = {entry.name(prompt) for prompt in entry.prompts}
        if entry.kind in ("ordinary", "plain"):
            kept |= named
        elif entry.kind != "word":  # whose prompts are held out in the panel, too
            planted |= named
        for captions in entry.captions:
            planted |= {entry.name(caption) for caption in captions}
    names = well_known(list(artwork)) - kept
    return sorted(names - planted), sorted(names & planted)


def _with_word(names: Sequence[str], word: str, rng: np.random.Generator) -> tuple[str, ...]:
    return tuple(add_word(name, word, first=bool(rng.integers(2))) for name in names)
