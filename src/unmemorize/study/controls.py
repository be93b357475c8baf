"""The pictures of an attack: those attacked, and its controls, trained on but not memorized, and never trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unmemorize.core.batches import CODED, decoded, inverted
from unmemorize.core.choose import evenly
from unmemorize.core.errors import UserError
from unmemorize.core.groups import ATTACKED, CONTROL, UNSEEN
from unmemorize.core.model import DiffusionModel
from unmemorize.core.results import Match
from unmemorize.data.bundle import Bundle
from unmemorize.metrics.similarity import References
from unmemorize.study.copies import CopyCheck

FEWEST = 6  # controls, however few pictures are attacked: one alone says little
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
        """The three groups by name."""
        return {ATTACKED: self.attacked, CONTROL: self.control, UNSEEN: self.unseen}


def choose_subjects(model: DiffusionModel, bundle: Bundle, check: CopyCheck, *, limit: int = 0) -> Subjects:
    """Pictures to attack, and as many of either control; an even spread where there are more.

    A picture that the model's VAE does not give back recognisably could never be copied: it is no control.

    Args:
        model: The model.
        bundle: Has the pictures to attack, training pictures that are not believed memorized, and where there are some
            pictures never trained on, which are made from the controls by default.
        check: The copy check, which tells derived pictures from training pictures.
        limit: The largest number of pictures to attack; 0 for all.

    Raises:
        UserError: There are no pictures, or no controls, or they cannot be read.
    """
    size = model.image_size
    attacked = bundle.targets(size)
    attacked = spread(attacked, limit or len(attacked))
    controls = without(bundle.controls(size), attacked)
    if not len(controls):
        source = bundle.source("controls")
        raise UserError(f"{source}: holds attacked pictures only: name other training pictures with --controls")
    return with_controls(model, check, attacked, controls, bundle)


def with_controls(
    model: DiffusionModel, check: CopyCheck, attacked: References, controls: References, bundle: Bundle | None = None
) -> Subjects:
    """Attacked pictures with as many of either control: of these training pictures, and of some never trained on.

    Those never trained on are the bundle's held-out pictures. Without a bundle, or if it has none, they are made from
    the controls.

    Raises:
        UserError: The held-out pictures cannot be read, or there are none and none can be made.
    """
    count = max(len(attacked), FEWEST)
    controls = _within_reach(model, controls, check)
    held_out = None if bundle is None else bundle.held_out(model.image_size)
    unseen_from = DERIVED if bundle is None else bundle.source("held_out", DERIVED)
    unseen = derive(controls, check.match) if held_out is None else held_out
    unseen = spread(_within_reach(model, unseen, check), count)
    return Subjects(attacked, spread(controls, count), unseen, unseen_from)


def _within_reach(model: DiffusionModel, pictures: References, check: CopyCheck) -> References:
    """The pictures that the VAE reconstructs well enough to count as copies of themselves; all if there are none."""
    left = []
    for start in range(0, len(pictures), CODED):
        rows = range(start, min(start + CODED, len(pictures)))
        part = pictures[rows]
        coded = decoded(model, inverted(model, part.images))
        for row, match in zip(rows, check.against(coded, part), strict=True):
            if match.copied:
                left.append(row)
    return pictures[left] if left else pictures


def derive(pictures: References, match: Callable[[Tensor], Sequence[Match]]) -> References:
    """Mirror the pictures and exchange colour channels; those that end near a training picture are left out.

    Raises:
        UserError: None is left.
    """
    pixels = pictures.pixels.flip(-1).roll(1, dims=1)
    left = [i for i, nearest in enumerate(match(pixels)) if not nearest.copied]
    if not left:
        raise UserError("no control differs enough from its mirror image: name pictures never trained on: --held-out")
    names = tuple(f"derived from {name}" for name in pictures.names)
    return References(names, pixels, (None,) * len(names), pictures.captions)[left]


def without(pictures: References, excluded: References) -> References:
    """The pictures that are not, pixel by pixel, among those excluded."""
    left = []
    for i, image in enumerate(pictures.pixels):
        if not any(torch.equal(image, other) for other in excluded.pixels):
            left.append(i)
    return pictures[left]


def spread(pictures: References, count: int) -> References:
    """At most `count` of them, evenly from first to last."""
    return pictures[evenly(len(pictures), count)]
