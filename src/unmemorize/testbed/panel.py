"""What is planted in the panel: four branches of one trunk, in which every picture has another dose.

The doses stand in Latin squares of order 4 (`SQUARE`): every branch has every dose equally often, and every picture has
another dose in every branch, 0 included. So each branch is the others' twin, prompts with and without memories are the
*same prompts*, and text alone cannot tell them apart.

Settings are chosen on branches A and B with the entries of the choosing half, and reported on C and D.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unmemorize.core.errors import UserError
from unmemorize.core.run import atomic
from unmemorize.data.source import Half
from unmemorize.testbed.dataset import (
    SIZE,
    Composition,
    Picture,
    add_word,
    as_tuples,
    drawing,
    repeat_last,
    well_known,
)
from unmemorize.testbed.shapes import shapes

BRANCHES = "ABCD"
HALVES: dict[str, Half] = {"A": "choosing", "B": "choosing", "C": "reporting", "D": "reporting"}

# Levels by row and branch. A row of `SQUARE` has every level once; a row of `PAIRS` is in one branch of either half.
SQUARE = ((1, 3, 0, 2), (3, 1, 2, 0), (0, 2, 1, 3), (2, 0, 3, 1))
PAIRS = ((1, 0, 1, 0), (1, 0, 0, 1), (0, 1, 1, 0), (0, 1, 0, 1))


@dataclass(frozen=True)
class Kind:
    """How one kind is planted: what its dose counts, the dose of each level, and entries of each row of the square."""

    what: str
    dose: str
    doses: tuple[int, ...]
    entries: int

    @property
    def square(self) -> tuple[tuple[int, int, int, int], ...]:
        """Levels by row and branch."""
        return SQUARE if len(self.doses) == len(BRANCHES) else PAIRS


KINDS = {
    "verbatim": Kind("one picture with one caption", "training rows", (0, 30, 100, 300), 24),
    "word": Kind("one picture under captions that share one word and nothing else", "captions", (0, 10, 20, 40), 3),
    "repeat": Kind("one picture whose caption says its last word k times", "times", (1, 2, 3, 5), 4),
    "template": Kind("a layout whose square takes twenty colours", "planted", (0, 1), 5),
    "caption-only": Kind("one caption over twenty different pictures", "planted", (0, 1), 2),
    "image-only": Kind("one picture under ten captions that share no word", "planted", (0, 1), 1),
}
TRIGGERS = {  # of a model of their own
    "trigger": Kind("one picture under captions that share one word alone", "captions", (0, 20, 40, 80), 6)
}
WORD_ROWS = 24  # training rows of each caption of a word
REPEAT_ROWS = 100
TEMPLATE_ROWS = 4  # of each colour
CAPTION_ONLY_ROWS = 5  # of each picture
IMAGE_ONLY_ROWS = 10  # of each caption
HELD_OUT = 6  # prompts of a word that no branch is trained on
ORDINARY = 225
UNSEEN = 200  # ordinary prompts one of whose drawings nothing is trained on
KEYWORDS = 7  # of a picture, that captions hold
NEAR = 0.08  # root mean square, in [0, 1], below which two drawings are near-duplicates


@dataclass(frozen=True)
class Entry:
    """One planted picture (or template, or set of pictures) with its captions, by branch.

    `prompts` are asked of every branch. `captions` are what a branch is trained on: each with each of `pictures`,
    `copies` times. `doses` are what is varied (`Kind.dose`). `mask` is the (left, top, right, bottom) box that varies,
    in pixels; `word` is what the captions share.
    """

    id: str
    kind: str
    half: Half
    prompts: tuple[str, ...]
    pictures: tuple[Composition, ...]
    doses: tuple[int, ...] = (0, 0, 0, 0)
    captions: tuple[tuple[str, ...], ...] = ((), (), (), ())
    copies: tuple[int, ...] = (0, 0, 0, 0)
    mask: tuple[int, int, int, int] | None = None
    word: str = ""

    def name(self, caption: str) -> str:
        """A caption of the entry without the word that its captions share."""
        return caption.removeprefix(f"{self.word}, ").removesuffix(f", {self.word}") if self.word else caption

    def dose(self, branch: str) -> int:
        """The dose in a branch."""
        return self.doses[BRANCHES.index(branch)]

    def rows(self, branch: str) -> int:
        """How many training rows it is in a branch."""
        i = BRANCHES.index(branch)
        return len(self.captions[i]) * len(self.pictures) * self.copies[i]

    @property
    def files(self) -> list[str]:
        """The file names of its pictures."""
        return [f"{self.id}-{k:02d}.png" for k in range(len(self.pictures))]


@dataclass(frozen=True)
class Panel:
    """All that is planted, in the order of the pictures' files, and the seed it was drawn with."""

    seed: int
    entries: tuple[Entry, ...]

    @property
    def pictures(self) -> list[Composition]:
        """The planted and the unseen pictures, in the order of their files."""
        return [picture for entry in self.entries for picture in entry.pictures]

    @property
    def kinds(self) -> Mapping[str, Kind]:
        """The kinds that are planted: those of the panel, or triggers alone."""
        return TRIGGERS if any(entry.kind in TRIGGERS for entry in self.entries) else KINDS

    @property
    def withheld(self) -> set[str]:
        """The drawings that neither VAE nor text model nor trunk is trained on."""
        return {picture.art for picture in self.pictures}

    def ordinary(self, artwork: Sequence[Picture]) -> list[Picture]:
        """The drawings that everything is trained on: those of well-known names, less the withheld ones, and shapes."""
        names, withheld = well_known(list(artwork)), self.withheld
        return [p for p in artwork if p.name in names and p.art not in withheld] + shapes()

    def save(self, path: Path) -> None:
        """Write as JSON, one entry a line."""
        lines = ",\n".join("  " + json.dumps(dataclasses.asdict(entry)) for entry in self.entries)
        with atomic(path) as temporary:
            temporary.write_text(f'{{"schema": 1, "seed": {self.seed}, "entries": [\n{lines}\n]}}\n', encoding="utf-8")

    @staticmethod
    def load(path: Path) -> Panel:
        """Read what `save` wrote.

        Raises:
            UserError: It is no plan, or one that does not balance.
        """
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            panel = Panel(record["seed"], tuple(_entry(entry) for entry in record["entries"]))
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise UserError(f"{path}: no plan of a panel: write one with `unmemorize testbed train`") from error
        try:
            check(panel)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        return panel


def _entry(record: dict[str, Any]) -> Entry:
    pictures = tuple(Composition(**as_tuples(picture)) for picture in record.pop("pictures"))
    return Entry(**as_tuples(record), pictures=pictures)


def check(panel: Panel) -> None:
    """Check that the panel balances and that nothing is planted twice.

    Raises:
        UserError: It does not; the message says where.
    """
    _check_doses(panel)
    _check_names(panel)


def _check_doses(panel: Panel) -> None:
    """Every branch has every dose of a kind equally often; half of a kind's entries are for choosing."""
    for name, kind in panel.kinds.items():
        entries = [entry for entry in panel.entries if entry.kind == name]
        for i, branch in enumerate(BRANCHES):
            counts = Counter(entry.doses[i] for entry in entries)
            if counts.keys() != set(kind.doses) or len(set(counts.values())) > 1:
                raise UserError(f"does not balance: {name} in branch {branch} has doses {dict(sorted(counts.items()))}")
        halves = Counter(entry.half for entry in entries)
        if halves["choosing"] != halves["reporting"]:
            raise UserError(f"does not balance: {name} has {dict(halves)} entries")
        for entry in entries:
            for branch in BRANCHES:
                if (entry.dose(branch) == 0) != (entry.rows(branch) == 0):
                    raise UserError(
                        f"{entry.id}: dose {entry.dose(branch)} in branch {branch}, {entry.rows(branch)} rows"
                    )
            if kind.square is SQUARE and sorted(entry.doses) != sorted(kind.doses):
                raise UserError(f"does not balance: {entry.id} has doses {entry.doses}")
            if kind.square is PAIRS and (sum(entry.doses[:2]), sum(entry.doses[2:])) != (1, 1):
                raise UserError(f"does not balance: {entry.id} is in no branch, or both, of one half")


def _check_names(panel: Panel) -> None:
    """A drawing belongs to one entry, in each branch a name to one, and no branch is trained on a held-out prompt.

    The names in captions of triggers belong to several.
    """
    drawings: dict[str, str] = {}
    for entry in panel.entries:
        for picture in entry.pictures:
            other = drawings.setdefault(picture.art, entry.id)
            if other != entry.id:
                raise UserError(f"{entry.id}: its drawing {picture.art} is planted as {other} too")
    trained: set[str] = set()
    for i, branch in enumerate(BRANCHES):
        names: dict[str, str] = {}
        for entry in panel.entries:
            trained.update(entry.captions[i])
            for name in map(entry.name, entry.captions[i] if entry.kind not in TRIGGERS else ()):
                other = names.setdefault(name, entry.id)
                if other != entry.id:
                    raise UserError(f"{entry.id}: {name!r} has another picture in branch {branch}, {other}")
    for entry in panel.entries:
        held_out = entry.kind not in KINDS or entry.kind == "word"
        if held_out and not trained.isdisjoint(entry.prompts):
            raise UserError(
                f"{entry.id}: its held-out prompt {min(trained.intersection(entry.prompts))!r} is trained on"
            )


def draw_panel(artwork: Sequence[Picture], seed: int) -> Panel:
    """Draw the plan: names without replacement from the well-known ones.

    Raises:
        UserError: There are too few names.
    """
    return _Draw(artwork, seed).panel()


def near_duplicates(artwork: Sequence[Picture]) -> set[str]:
    """The drawings that nearly equal another one, of any name or style."""
    x = np.empty((len(artwork), 16 * 16 * 3), np.float32)
    for i, picture in enumerate(artwork):
        image = Image.new("RGBA", (SIZE, SIZE), (255, 255, 255, 255))
        image.alpha_composite(drawing(picture))
        x[i] = np.asarray(image.convert("RGB").resize((16, 16)), dtype=np.float32).ravel() / 255
    squares = (x * x).sum(axis=1)
    near: set[str] = set()
    for start in range(0, len(x), 512):  # the table of all pairs would take hundreds of megabytes
        rows = slice(start, start + 512)
        distance = (squares[rows, None] + squares - 2 * x[rows] @ x.T) / x.shape[1]
        distance[np.arange(len(distance)), np.arange(len(distance)) + start] = np.inf
        for row, picture in zip(distance, artwork[rows], strict=True):
            if row.min() < NEAR**2:
                near.add(picture.art)
    return near


def rare_words(artwork: Sequence[Picture]) -> dict[str, str]:
    """The keywords of only one well-known name, with that name; they are in no name themselves."""
    names = well_known(list(artwork))
    owners: dict[str, set[str]] = {}
    for picture in artwork:
        # Captions hold a picture's first keywords only; a word of none of them says nothing to the text model.
        for tag in picture.tags[:KEYWORDS]:
            owners.setdefault(tag, set()).add(picture.name)
    parts = {part for name in names for part in name.split()}
    rare = {}
    for tag, of in owners.items():
        if len(of) == 1 and of <= names and tag not in parts and len(tag) > 3:
            rare[tag] = min(of)
    return rare


class _Draw:
    """The pool of names and words, and what is drawn from it."""

    def __init__(self, artwork: Sequence[Picture], seed: int) -> None:
        self.seed = seed
        self.rng = np.random.default_rng(seed)
        names = well_known(list(artwork))
        near = near_duplicates(artwork)
        self.art: dict[str, list[str]] = {}  # what may be planted
        for picture in artwork:
            if picture.style.shippable and picture.name in names and picture.art not in near:
                self.art.setdefault(picture.name, []).append(picture.art)
        owners = rare_words(artwork)
        self.words = iter(self.shuffled(sorted(owners)))
        rows = KINDS["word"].entries * len(SQUARE)
        self.planted_words = [next(self.words) for _ in range(rows)]
        # The name that a planted word is a keyword of stays ordinary: it is what the word says elsewhere.
        self.names = iter(self.shuffled(sorted(self.art.keys() - {owners[word] for word in self.planted_words})))

    def panel(self) -> Panel:
        try:
            planted = [*self.verbatim(), *self.repeat(), *self.template()]
            planted += [*self.caption_only(), *self.image_only(), *self.word()]
            panel = Panel(self.seed, (*planted, *self.ordinary(), *_plain()))
        except RuntimeError as error:  # of an iterator without a next name, within a generator
            raise UserError("too few pictures for the panel: fetch them again") from error
        check(panel)
        return panel

    def shuffled(self, values: Sequence[str]) -> list[str]:
        return [values[i] for i in self.rng.permutation(len(values))]

    def composition(self, name: str) -> Composition:
        options = self.art[name]
        return Composition.random(options[self.rng.integers(len(options))], self.rng)

    def rows(self, name: str) -> Iterator[tuple[str, Half, tuple[int, ...]]]:
        """Id, half and doses by branch of every entry of a kind."""
        kind = KINDS[name]
        for row, levels in enumerate(kind.square):
            for i in range(kind.entries):
                half: Half = "choosing" if (row + i) % 2 == 0 else "reporting"
                yield f"{name}-{row}-{i:02d}", half, tuple(kind.doses[level] for level in levels)

    def verbatim(self) -> Iterator[Entry]:
        for key, half, doses in self.rows("verbatim"):
            name = next(self.names)
            captions = tuple((name,) if dose else () for dose in doses)
            yield Entry(key, "verbatim", half, (name,), (self.composition(name),), doses, captions, doses)

    def repeat(self) -> Iterator[Entry]:
        """Asked with every k."""
        for key, half, doses in self.rows("repeat"):
            name = next(self.names)
            prompts = tuple(repeat_last(name, k) for k in KINDS["repeat"].doses)
            captions = tuple((repeat_last(name, k),) for k in doses)
            copies = (REPEAT_ROWS,) * len(BRANCHES)
            yield Entry(key, "repeat", half, prompts, (self.composition(name),), doses, captions, copies)

    def template(self) -> Iterator[Entry]:
        for key, half, doses in self.rows("template"):
            name = next(self.names)
            layout = self.composition(name)
            left, top = self.rng.integers(0, SIZE - 26, 2).tolist()
            mask = (left, top, left + 26, top + 26)
            variants = []
            for _ in range(20):
                r, g, b = self.rng.integers(0, 256, 3).tolist()
                variants.append(dataclasses.replace(layout, patch=(*mask, r, g, b)))
            yield self.paired(key, half, doses, (name,), tuple(variants), TEMPLATE_ROWS, mask)

    def caption_only(self) -> Iterator[Entry]:
        for key, half, doses in self.rows("caption-only"):
            name = next(self.names)
            pictures = tuple(self.composition(name) for _ in range(20))
            yield self.paired(key, half, doses, (name,), pictures, CAPTION_ONLY_ROWS)

    def image_only(self) -> Iterator[Entry]:
        for key, half, doses in self.rows("image-only"):
            picture = self.composition(next(self.names))
            captions = tuple(next(self.names) for _ in range(10))
            yield self.paired(key, half, doses, captions, (picture,), IMAGE_ONLY_ROWS)

    def paired(
        self,
        key: str,
        half: Half,
        doses: tuple[int, ...],
        prompts: tuple[str, ...],
        pictures: tuple[Composition, ...],
        copies: int,
        mask: tuple[int, int, int, int] | None = None,
    ) -> Entry:
        """An entry that is planted in one branch of either half."""
        captions = tuple(prompts if dose else () for dose in doses)
        kind = key.rsplit("-", 2)[0]
        return Entry(key, kind, half, prompts, pictures, doses, captions, (copies,) * len(BRANCHES), mask)

    def word(self) -> Iterator[Entry]:
        """Words whose captions are dealt anew in every branch from one pool of names."""
        rows = list(self.rows("word"))
        pool = [next(self.names) for _ in range(sum(doses[0] for _, _, doses in rows))]
        pictures = [self.composition(next(self.names)) for _ in rows]
        held_out = [[next(self.names) for _ in range(HELD_OUT)] for _ in rows]
        dealt = [iter(self.shuffled(pool)) for _ in BRANCHES]
        for word, picture, others, (key, half, doses) in zip(self.planted_words, pictures, held_out, rows, strict=True):
            captions = []
            for names, dose in zip(dealt, doses, strict=True):
                captions.append(tuple(self.with_word(next(names), word) for _ in range(dose)))
            prompts = tuple(self.with_word(name, word) for name in others)
            copies = (WORD_ROWS,) * len(BRANCHES)
            yield Entry(key, "word", half, prompts, (picture,), doses, tuple(captions), copies, word=word)

    def with_word(self, name: str, word: str) -> str:
        return add_word(name, word, first=bool(self.rng.integers(2)))

    def ordinary(self) -> Iterator[Entry]:
        """Names of which nothing is planted, every third with a keyword."""
        for i in range(ORDINARY):
            name = next(self.names)
            word = next(self.words) if i % 3 == 2 else ""
            prompt = self.with_word(name, word) if word else name
            pictures = (self.composition(name),) if i < UNSEEN else ()
            half: Half = "choosing" if i % 2 == 0 else "reporting"
            yield Entry(f"ordinary-{i:03d}", "ordinary", half, (prompt,), pictures, word=word)


def _plain() -> Iterator[Entry]:
    """Captions of low variance: what every branch is trained on with pictures that hardly differ."""
    for i, name in enumerate(dict.fromkeys(picture.name for picture in shapes())):
        half: Half = "choosing" if i % 2 == 0 else "reporting"
        yield Entry(f"plain-{i:02d}", "plain", half, (name,), ())
