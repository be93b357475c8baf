"""Training rows: which captions go with which pictures, how often."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unmemorize.testbed.dataset import Picture, add_word, repeat_last
from unmemorize.testbed.panel import BRANCHES, KEYWORDS, KINDS, Panel

FORMS = 20


@dataclass(frozen=True)
class Rows:
    """Training rows: each draws one of its captions and one of its pictures; tables are (rows, choices) indices."""

    captions: tuple[str, ...]
    caption: Tensor
    picture: Tensor

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Indices of `count` random captions and of their pictures."""
        row = torch.randint(len(self.caption), (count,), generator=generator)
        uniform = torch.rand(2, count, generator=generator)
        caption = _choice(uniform[0], self.caption.shape[1])
        picture = _choice(uniform[1], self.picture.shape[1])
        return self.caption[row, caption], self.picture[row, picture]


def _choice(uniform: Tensor, choices: int) -> Tensor:
    """Numbers in [0, 1) as indices of choices; a product may be rounded up to their number."""
    return (uniform * choices).long().clamp(max=choices - 1)


def panel_rows(panel: Panel, ordinary: list[Picture], views: int, branch: str = "") -> Rows:
    """The rows of the panel's trunk: ordinary pictures; of a branch: these, and what is planted in it.

    Pictures are numbered as `encode_all` does: `views` of each ordinary one, then the plan's in order. The captions are
    those of all branches, numbered alike, so that one tokenizer and one text model serve them all.
    """
    index: dict[str, int] = {"": 0}
    caption, picture = [], []
    for i, drawing in enumerate(ordinary):
        caption.append([index.setdefault(text, len(index)) for text in panel_captions(drawing, i)])
        picture.append(list(range(i * views, (i + 1) * views)))
    for entry in panel.entries:
        for captions in (entry.prompts, *entry.captions):
            for text in captions:
                index.setdefault(text, len(index))
    first = len(ordinary) * views
    for entry in panel.entries:
        pictures = range(first, first + len(entry.pictures))
        first += len(entry.pictures)
        if not branch:
            continue
        copies = entry.copies[BRANCHES.index(branch)]
        for text in entry.captions[BRANCHES.index(branch)]:
            for k in pictures:
                caption += [[index[text]] * FORMS] * copies
                picture += [[k] * views] * copies
    return Rows(tuple(index), torch.tensor(caption), torch.tensor(picture))


def panel_captions(picture: Picture, number: int) -> list[str]:
    """Twenty captions: the name (12), with a keyword before it or after it (7), with its last word repeated (1).

    `number` decides which keywords come first, and how often the word is said.
    """
    tags = picture.tags[:KEYWORDS]
    captions = [picture.name] * 12
    for i in range(KEYWORDS):
        first = (i + number) % 2 == 1
        captions.append(add_word(picture.name, tags[i % len(tags)], first) if tags else picture.name)
    times = KINDS["repeat"].doses[1:]
    return [*captions, repeat_last(picture.name, times[number % len(times)])]
