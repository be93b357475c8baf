"""Captions in one JSON document, as COCO, Karpathy's splits, BLIP, DCR and kohya's scripts leave them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from unmemorize.core.errors import UserError
from unmemorize.core.plain import from_json
from unmemorize.core.storage import opened, stamp_of
from unmemorize.data.items import Item, caption_of, find_name, name_key, with_caption

NAMES = ("file_name", "filename", "image", "image_path", "path")  # what names the picture of an entry
LARGEST = 1 << 28  # bytes


@dataclass(frozen=True)
class DocumentPiece:
    """A document on its own: all its captions, without pictures."""

    path: Path
    column: str = ""

    def items(self) -> Iterator[Item]:
        """Read it."""
        for number, (_, caption) in enumerate(captions_in(self.path, self.column), 1):
            yield with_caption(Item(f"caption {number}"), caption)


def document_piece(path: Path, column: str) -> DocumentPiece:
    """The captions in a document.

    Raises:
        UserError: It holds none.
    """
    try:
        found = next(captions_in(path, column), None)
    except ValueError as error:
        raise UserError(f"{path}: no JSON in UTF-8, or more than {LARGEST:,} bytes: save it again") from error
    if found is None:
        raise UserError(
            f"{path}: no captions in it: it should be a list of them, an object from names of pictures to captions, or "
            "as COCO has them; name what they are called with --column"
        )
    return DocumentPiece(path, column)


def captions_in(path: Path, column: str = "") -> Iterator[tuple[str, Any]]:
    """Every caption in a document with the name of its picture, which is empty where it has none.

    The document is an object with `images` and `annotations`, as COCO has it, or with `images` of several `sentences`;
    an object from a picture's name to its caption, to several, or to an object with one; or a list of captions, or of
    objects that name a picture and have its caption. Of anything else there are none.

    Raises:
        ValueError: It is no JSON in UTF-8, or larger than `LARGEST`.
    """
    if stamp_of(path)[0] > LARGEST:
        raise ValueError("too large")
    with opened(path) as file:
        document = from_json(file.read().decode("utf-8-sig"))
    for name, entry in _entries(document):
        caption = caption_of(entry, column) if isinstance(entry, dict) else entry
        for text in caption if isinstance(caption, list) else [caption]:
            if text is not None:
                yield name, text


def _entries(document: object) -> Iterator[tuple[str, Any]]:
    """What may hold a caption, with the name of its picture."""
    if isinstance(document, list):
        if all(isinstance(entry, str | dict) for entry in document):
            yield from ((_name(entry), entry) for entry in document)
    elif isinstance(document, dict):
        images, annotations = document.get("images"), document.get("annotations")
        if isinstance(images, list):
            yield from _of_images([image for image in images if isinstance(image, dict)], annotations)
        elif all(isinstance(entry, str | list | dict) for entry in document.values()):
            yield from document.items()


def _of_images(images: list[Mapping[str, Any]], annotations: object) -> Iterator[tuple[str, Any]]:
    names = {repr(image.get("id")): _name(image) for image in images}
    for note in annotations if isinstance(annotations, list) else []:
        if isinstance(note, dict):
            yield names.get(repr(note.get("image_id")), ""), note
    for image in images:
        sentences = image.get("sentences")
        for sentence in sentences if isinstance(sentences, list) else []:
            yield _name(image), sentence.get("raw") if isinstance(sentence, dict) else sentence


def _name(entry: object) -> str:
    column = find_name(entry, NAMES) if isinstance(entry, dict) else None
    name = entry[column] if isinstance(entry, dict) and column else None
    return name if isinstance(name, str) else ""


class Names:
    """The pictures of a folder, by what others call them: from another folder or computer, or without its ending."""

    def __init__(self, names: Sequence[str]) -> None:
        self._known: dict[str, list[tuple[str, ...]]] = {}
        self._names: dict[tuple[str, ...], str] = {}
        for name in names:
            parts = _parts(name)
            self._names[parts] = name
            for called in {parts[-1], PurePosixPath(parts[-1]).stem}:
                self._known.setdefault(called, []).append(parts)

    def captioned(self, document: Path, column: str) -> tuple[dict[str, object], list[str]]:
        """The first caption of each picture in a document, and the names in it that are no picture's."""
        known: dict[str, object] = {}
        unknown: dict[str, None] = {}
        try:
            for name, caption in captions_in(document, column):
                picture = self._meant(name)
                if picture is None:
                    unknown[name] = None
                else:
                    known.setdefault(picture, caption)
        except ValueError:
            return {}, []
        return known, list(unknown)

    def _meant(self, name: str) -> str | None:
        """The one picture that shares more of the end of its path with a name than any other does."""
        wanted = _parts(name)
        shared = {parts: _shared_end(wanted[:-1], parts[:-1]) for parts in self._known.get(wanted[-1], ())}
        best = [parts for parts in shared if shared[parts] == max(shared.values())]
        return self._names[best[0]] if len(best) == 1 else None


def _parts(name: str) -> tuple[str, ...]:
    return PurePosixPath(name_key(name).casefold()).parts or ("",)


def _shared_end(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    """How many of the last parts of two paths are the same."""
    count = 0
    while count < min(len(one), len(other)) and one[-1 - count] == other[-1 - count]:
        count += 1
    return count
