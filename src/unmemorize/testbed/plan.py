"""What is planted in the testbed: ground truth as data, in `assets/plan.json`.

Every prompt, planted or not, is a CLDR name drawn from one pool, alone, with one keyword ("oden, gadget"), or with its
last word repeated; the shares of the three forms are the same among planted and ordinary prompts, so that text alone
cannot tell them apart.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unmemorize.testbed.dataset import SIZE, Composition, Picture, add_word, as_tuples, repeat_last, well_known

# Of ten seeds, the one whose text-only control, over words and characters, was nearest to chance.
PLAN_SEED = 2
LADDER = {1: 12, 3: 12, 10: 12, 30: 12, 100: 12, 300: 4, 1000: 2}  # copies of a picture: how many such pictures
KINDS = {
    "verbatim": "one picture with one caption, `copies` times",
    "template": "a fixed layout whose patch takes twenty colours; the mask covers the patch",
    "word": "near-duplicate pictures whose captions share one word and nothing else",
    "repeat": "one picture whose caption repeats a word",
    "caption-only": "one caption over twenty different pictures",
    "image-only": "one picture under twenty captions that share its name: alone, and with nineteen keywords",
    "negative": "one picture, once, beside the other styles of its name",
}


@dataclass(frozen=True)
class Planted:
    """One entry of the plan: every prompt is paired with every picture, `copies` times.

    `family` groups entries that share a word; `mask` is the (left, top, right, bottom) box that varies, in pixels.
    """

    id: str
    kind: str
    family: str
    prompts: tuple[str, ...]
    pictures: tuple[Composition, ...]
    copies: int
    mask: tuple[int, int, int, int] | None = None

    @property
    def rows(self) -> int:
        """How many training rows it is."""
        return len(self.prompts) * len(self.pictures) * self.copies

    @property
    def memorable(self) -> bool:
        """Whether one caption meets one picture (or template) often: what a detector should call memorized."""
        return self.kind in {"template", "word", "repeat"} or (self.kind == "verbatim" and self.copies >= 100)

    @property
    def files(self) -> list[str]:
        """The file names of its pictures."""
        return [f"{self.id}-{k:02d}.png" for k in range(len(self.pictures))]


@dataclass(frozen=True)
class Plan:
    """All that is planted, and the seed it was drawn with."""

    seed: int
    planted: tuple[Planted, ...]

    @property
    def pictures(self) -> list[Composition]:
        """The planted pictures, in the order of their files."""
        return [picture for entry in self.planted for picture in entry.pictures]

    def save(self, path: Path) -> None:
        """Write as JSON, one entry a line."""
        entries = ",\n".join("  " + json.dumps(dataclasses.asdict(p)) for p in self.planted)
        path.write_text(f'{{"schema": 1, "seed": {self.seed}, "planted": [\n{entries}\n]}}\n', encoding="utf-8")

    @staticmethod
    def load(path: Path) -> Plan:
        """Read what `save` wrote."""
        record = json.loads(path.read_text(encoding="utf-8"))
        return Plan(record["seed"], tuple(_planted(entry) for entry in record["planted"]))


def _planted(entry: dict[str, Any]) -> Planted:
    pictures = tuple(Composition(**as_tuples(picture)) for picture in entry.pop("pictures"))
    return Planted(**as_tuples(entry), pictures=pictures)


def repeat_word(name: str) -> str:
    """The name with its last word said three times."""
    return repeat_last(name, 3)


def add_keyword(name: str, keyword: str) -> str:
    """The name followed by one keyword."""
    return add_word(name, keyword, first=False)


def draw_plan(pictures: list[Picture], seed: int) -> Plan:
    """Draw the plan: names without replacement from the well-known ones."""
    rng = np.random.default_rng(seed)
    art: dict[str, list[str]] = {}
    for picture in pictures:
        if picture.style.shippable:
            art.setdefault(picture.name, []).append(picture.art)
    names = sorted(well_known(pictures))
    pool = iter([names[i] for i in rng.permutation(len(names))])
    words = iter(_rare_words(pictures, rng))
    draw = _Draw(rng, art, pool, words)
    return Plan(
        seed, (*draw.verbatim(), *draw.template(), *draw.word(), *draw.repeat(), *draw.one_sided(), *draw.negative())
    )


def _rare_words(pictures: Sequence[Picture], rng: np.random.Generator) -> list[str]:
    """Keywords that belong to one name only and are no part of any name, shuffled."""
    owners: dict[str, set[str]] = {}
    for picture in pictures:
        for tag in picture.tags:
            owners.setdefault(tag, set()).add(picture.name)
    taken = {word for picture in pictures for word in picture.name.split()}
    rare = sorted(tag for tag, names in owners.items() if len(names) == 1 and tag not in taken and len(tag) > 3)
    return [rare[i] for i in rng.permutation(len(rare))]


@dataclass
class _Draw:
    rng: np.random.Generator
    art: dict[str, list[str]]
    pool: Iterator[str]
    words: Iterator[str]

    def compositions(self, name: str, count: int = 1) -> tuple[Composition, ...]:
        options = self.art[name]
        return tuple(Composition.random(options[self.rng.integers(len(options))], self.rng) for _ in range(count))

    def verbatim(self) -> Iterator[Planted]:
        for copies, count in LADDER.items():
            for i in range(count):
                name, key = next(self.pool), f"verbatim-{copies:04d}-{i:02d}"
                yield Planted(key, "verbatim", key, (name,), self.compositions(name), copies)

    def template(self) -> Iterator[Planted]:
        for i in range(20):
            name, key = next(self.pool), f"template-{i:02d}"
            (layout,) = self.compositions(name)
            left, top = self.rng.integers(0, SIZE - 26, 2).tolist()
            mask = (left, top, left + 26, top + 26)
            variants = []
            for _ in range(20):
                r, g, b = self.rng.integers(0, 256, 3).tolist()
                variants.append(dataclasses.replace(layout, patch=(*mask, r, g, b)))
            yield Planted(key, "template", key, (name,), tuple(variants), 4, mask)

    def word(self) -> Iterator[Planted]:
        for i in range(20):
            word, key = next(self.words), f"word-{i:02d}"
            names = [next(self.pool) for _ in range(6)]
            (picture,) = self.compositions(names[0])
            r, g, b = picture.background
            near = []
            for k in range(3):
                darker = (max(r - 4 * k, 0), max(g - 4 * k, 0), max(b - 4 * k, 0))
                near.append(dataclasses.replace(picture, background=darker))
            yield Planted(key, "word", key, tuple(add_keyword(n, word) for n in names), tuple(near), 4)

    def repeat(self) -> Iterator[Planted]:
        for i in range(10):
            name, key = next(self.pool), f"repeat-{i:02d}"
            yield Planted(key, "repeat", key, (repeat_word(name),), self.compositions(name), 100)

    def one_sided(self) -> Iterator[Planted]:
        for i in range(10):
            name, key = next(self.pool), f"caption-only-{i:02d}"
            yield Planted(key, "caption-only", key, (name,), self.compositions(name, 20), 2)
        for i in range(10):
            name, key = next(self.pool), f"image-only-{i:02d}"
            captions = (name, *(add_keyword(name, next(self.words)) for _ in range(19)))
            yield Planted(key, "image-only", key, captions, self.compositions(name), 3)

    def negative(self) -> Iterator[Planted]:
        # Forms in the shares of the memorable prompts: 38 bare names, 120 with a keyword shared by six, 10 repeated.
        for i in range(60):
            name, key = next(self.pool), f"negative-name-{i:02d}"
            yield Planted(key, "negative", key, (name,), self.compositions(name), 1)
        for i in range(25):
            word = next(self.words)
            for j in range(6):
                name, family = next(self.pool), f"negative-word-{i:02d}"
                prompt = add_keyword(name, word)
                yield Planted(f"{family}-{j}", "negative", family, (prompt,), self.compositions(name), 1)
        for i in range(15):
            name, key = next(self.pool), f"negative-repeat-{i:02d}"
            yield Planted(key, "negative", key, (repeat_word(name),), self.compositions(name), 1)
