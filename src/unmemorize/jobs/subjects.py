"""The pictures of an attack: those attacked, and its controls, trained on but not memorized, and never trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unmemorize.core.choose import evenly
from unmemorize.core.errors import UserError
from unmemorize.core.model import DiffusionModel
from unmemorize.core.results import Match
from unmemorize.data.source import read_references
from unmemorize.jobs.copies import CopyCheck
from unmemorize.metrics.similarity import References
from unmemorize.models.load import EMBEDDED
from unmemorize.testbed import embedded

FEWEST = 6  # controls, however few pictures are attacked: one alone says little
ROWS = 16  # pictures that the VAE codes together
DERIVED = "the controls, mirrored and with their colour channels exchanged"


@dataclass(frozen=True)
class Subjects:
    """The pictures, their captions as prompts; `unseen_from` says where those never trained on come from."""

    attacked: References
    control: References
    unseen: References
    unseen_from: str

    @property
    def groups(self) -> dict[str, References]:
        """All three by name."""
        return {"attacked": self.attacked, "control": self.control, "unseen": self.unseen}


def choose_subjects(
    model: DiffusionModel,
    name: str,
    check: CopyCheck,
    *,
    targets: str = "",
    controls: str = "",
    held_out: str = "",
    limit: int = 0,
) -> Subjects:
    """Pictures to attack, and as many of either control; an even spread where there are more.

    A picture that the model's VAE does not give back recognisably could never be copied: it is no control.

    Args:
        model: The model.
        name: What it was loaded by: an embedded one brings pictures and controls.
        check: The copy check, which tells derived pictures from training pictures.
        targets: Folder of pictures to attack; an embedded model's memorable verbatim ones by default.
        controls: Folder of training pictures that are not believed memorized.
        held_out: Folder of pictures never trained on; made from the controls by default.
        limit: The largest number of pictures to attack; 0 for all.

    Raises:
        UserError: There are no pictures, or no controls, or they cannot be read.
    """
    size = model.image_size
    attacked = read_references(Path(targets), size) if targets else _planted(check.references)
    attacked = spread(attacked, limit or len(attacked))
    others = _without(trained(name, size, check, controls), attacked)
    if not len(others):
        raise UserError(f"{controls}: holds attacked pictures only: name other training pictures with --controls")
    return with_controls(model, check, attacked, others, held_out)


def with_controls(
    model: DiffusionModel, check: CopyCheck, attacked: References, others: References, held_out: str = ""
) -> Subjects:
    """Attacked pictures with as many of either control: from other training pictures, and never trained on.

    Raises:
        UserError: The held-out pictures cannot be read, or there are none and none can be made.
    """
    count = max(len(attacked), FEWEST)
    others = _within_reach(model, others, check)
    unseen = read_references(Path(held_out), model.image_size) if held_out else derive(others, check.match)
    unseen = spread(_within_reach(model, unseen, check), count)
    return Subjects(attacked, spread(others, count), unseen, held_out or DERIVED)


@torch.no_grad()
def _within_reach(model: DiffusionModel, pictures: References, check: CopyCheck) -> References:
    """Those that are still copies of themselves when the VAE has coded them; all where it gives none back."""
    left = []
    for start in range(0, len(pictures), ROWS):
        rows = range(start, min(start + ROWS, len(pictures)))
        part = pictures[rows]
        coded = model.decode(model.invert(part.images))
        left += [row for row, found in zip(rows, check.against(coded, part), strict=True) if found.verdict != "none"]
    return pictures[left] if left else pictures


def derive(pictures: References, match: Callable[[Tensor], Sequence[Match]]) -> References:
    """Pictures like these that no training set holds; what comes out near a training picture is left out.

    Raises:
        UserError: None is left.
    """
    pixels = pictures.pixels.flip(-1).roll(1, dims=1)
    left = [i for i, found in enumerate(match(pixels)) if found.verdict == "none"]
    if not left:
        raise UserError("no control differs enough from its mirror image: name pictures never trained on: --held-out")
    names = tuple(f"derived from {name}" for name in pictures.names)
    return References(names, pixels, (None,) * len(names), pictures.captions)[left]


def _planted(references: References) -> References:
    """The embedded model's memorable verbatim pictures."""
    return references.named(embedded.planted_files(lambda e: e.kind == "verbatim" and e.memorable))


def trained(model: str, size: tuple[int, int], check: CopyCheck, controls: str = "") -> References:
    """Training pictures that are not memorized: those named, or negatives whose prompt is a name."""
    if controls:
        return read_references(Path(controls), size)
    if model not in EMBEDDED:
        raise UserError(
            f"{model}: an attack says nothing without a control: name a folder of training pictures that are not "
            "believed memorized with --controls"
        )
    return check.references.named(embedded.planted_files(lambda e: e.id.startswith("negative-name")))


def _without(pictures: References, attacked: References) -> References:
    same = [any(torch.equal(image, other) for other in attacked.pixels) for image in pictures.pixels]
    return pictures[[i for i, found in enumerate(same) if not found]]


def spread(pictures: References, count: int) -> References:
    """At most `count` of them, evenly from first to last."""
    return pictures[evenly(len(pictures), count)]
