"""Which pictures are to be forgotten and which kept: folders of pictures with captions, or the testbed's own."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from unmemorize.core.errors import UserError
from unmemorize.core.model import DiffusionModel
from unmemorize.data.source import read_references
from unmemorize.metrics.related import related
from unmemorize.metrics.similarity import References
from unmemorize.models.load import EMBEDDED
from unmemorize.testbed import embedded
from unmemorize.testbed.plan import Planted

HELD_OUT = 128  # ordinary pictures that quality is measured on, at most
FEWEST = 3  # fewer have no spread to measure


@dataclass(frozen=True)
class Split:
    """Ordinary pictures to train on, others to measure quality on, and the clusters of the latter's captions."""

    train: References
    held_out: References
    clusters: tuple[str, ...]


def memorized_pictures(model: DiffusionModel, name: str, folder: str) -> References:
    """The pictures in a folder, or the testbed's verbatim ones that were planted a hundred times or more.

    Raises:
        UserError: There are none, they cannot be read, or one has no caption.
    """
    if not folder:
        return _planted(model, name, lambda e: e.kind == "verbatim" and e.memorable, "--targets")
    return _captioned(Path(folder), model)


def ordinary_pictures(model: DiffusionModel, name: str, folder: str) -> Split:
    """The pictures in a folder, or the testbed's that were planted rarely; every other cluster of captions is held out.

    Raises:
        UserError: There are too few, they cannot be read, or one has no caption.
    """
    if not folder:
        held = _planted(model, name, lambda e: e.kind == "negative", "--controls")
        families = {entry.id: entry.family for entry in embedded.shipped_plan().planted}
        clusters = [families[file.rsplit("-", 1)[0]] for file in held.names]
        more = _planted(model, name, lambda e: e.kind == "caption-only" or _rare(e), "--controls")
    else:
        held, more = _captioned(Path(folder), model), None
        clusters = related([c or "" for c in held.captions])
    names = sorted(set(clusters))
    random.Random(0).shuffle(names)
    chosen = set(names[::2])
    rows = [i for i, c in enumerate(clusters) if c in chosen][:HELD_OUT]
    rest = [i for i, c in enumerate(clusters) if c not in chosen]
    if len(rows) < FEWEST or not rest:
        raise UserError(
            f"{folder}: too few ordinary pictures, or captions all alike: some are trained on, others measured"
        )
    train = held[rest]
    return Split(joined(train, more) if more else train, held[rows], tuple(clusters[i] for i in rows))


def _rare(entry: Planted) -> bool:
    return entry.kind == "verbatim" and entry.copies <= 3


def _planted(model: DiffusionModel, name: str, keep: Callable[[Planted], bool], option: str) -> References:
    if name not in EMBEDDED:
        raise UserError(f"{name}: which pictures? name a folder of pictures with captions with {option}")
    return read_references(embedded.IMAGES, model.image_size).named(embedded.planted_files(keep))


def _captioned(folder: Path, model: DiffusionModel) -> References:
    found = read_references(folder, model.image_size)
    for name, caption in zip(found.names, found.captions, strict=True):
        if not caption:
            raise UserError(
                f"{folder / name}: no caption: write it to a .txt file of the same name, or to metadata.jsonl"
            )
    return found


def joined(first: References, second: References) -> References:
    """Both."""
    pixels = torch.cat([first.pixels, second.pixels])
    names, masks = first.names + second.names, first.masks + second.masks
    return References(names, pixels, masks, first.captions + second.captions)


def captions_of(pictures: References) -> list[str]:
    """The captions."""
    return [caption or "" for caption in pictures.captions]


def hashes(pictures: References) -> list[dict[str, str]]:
    """What names a picture without showing it: SHA-256 of its pixels as they were read, and of its caption."""
    pixels = [
        hashlib.sha256(image.mul(255).round().byte().numpy().tobytes()).hexdigest() for image in pictures.batches(1)
    ]
    texts = [hashlib.sha256(c.encode(errors="surrogateescape")).hexdigest() for c in captions_of(pictures)]
    return [{"pixels": p, "caption": c} for p, c in zip(pixels, texts, strict=True)]
