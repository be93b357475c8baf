"""Which pictures are to be forgotten and which kept: folders of pictures with captions, or the testbed's own."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from pathlib import Path

from unmemorize.core.errors import UserError
from unmemorize.data.bundle import Bundle, is_ordinary
from unmemorize.metrics.related import related
from unmemorize.metrics.similarity import References

HELD_OUT = 128  # ordinary pictures that quality is measured on, at most
FEWEST = 3  # fewer have no spread to measure


@dataclass(frozen=True)
class Split:
    """Ordinary pictures to train on, others to measure quality on, and the clusters of the latter's captions."""

    train: References
    held_out: References
    clusters: tuple[str, ...]


def memorized_pictures(bundle: Bundle, size: tuple[int, int]) -> References:
    """The pictures to forget: those named, or the testbed's verbatim ones that were planted a hundred times or more.

    Raises:
        UserError: There are none, they cannot be read, or one has no caption.
    """
    return _captioned(bundle.targets(size), bundle.source("targets"))


def ordinary_pictures(bundle: Bundle, size: tuple[int, int]) -> Split:
    """The pictures to keep, or the testbed's ordinary ones, trained on or not; every other cluster is held out.

    Raises:
        UserError: There are too few, they cannot be read, or one has no caption.
    """
    folder = bundle.source("controls")
    pictures = _captioned(bundle.controls(size), folder)
    if bundle.own is not None and "controls" not in bundle.files:
        pictures = References.joined([pictures, bundle.own_pictures(size, is_ordinary)])
    clusters = related(pictures.prompts)
    names = sorted(set(clusters))
    random.Random(0).shuffle(names)
    chosen = set(names[::2])
    rows = [i for i, c in enumerate(clusters) if c in chosen][:HELD_OUT]
    trained = [i for i, c in enumerate(clusters) if c not in chosen]
    if len(rows) < FEWEST or not trained:
        raise UserError(
            f"{folder}: too few ordinary pictures, or captions all alike: some are trained on, others measured"
        )
    return Split(pictures[trained], pictures[rows], tuple(clusters[i] for i in rows))


def _captioned(pictures: References, folder: str) -> References:
    for name, caption in zip(pictures.names, pictures.captions, strict=True):
        if not caption:
            raise UserError(
                f"{Path(folder) / name}: no caption: write it to a .txt file of the same name, or to metadata.jsonl"
            )
    return pictures


def hashes(pictures: References) -> list[dict[str, str]]:
    """SHA-256 of each picture's pixels as they were read and of its caption, which name it without showing it."""
    pixels = [
        hashlib.sha256(image.mul(255).round().byte().numpy().tobytes()).hexdigest() for image in pictures.batches(1)
    ]
    texts = [hashlib.sha256(c.encode(errors="surrogateescape")).hexdigest() for c in pictures.prompts]
    return [{"pixels": p, "caption": c} for p, c in zip(pixels, texts, strict=True)]
