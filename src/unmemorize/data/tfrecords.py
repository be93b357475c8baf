"""TFRecord files of examples, as img2dataset writes them, read without TensorFlow: one example at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from unmemorize.core.storage import opened
from unmemorize.data.cells import IDS, PICTURES
from unmemorize.data.items import COLUMNS, MAX_FILE, Item, find_name, safe_id, with_caption

LARGEST = MAX_FILE + (1 << 20)  # bytes of an example
CAPTIONS = (*COLUMNS, "txt")
_SIZES = {1: 8, 5: 4}  # bytes of a value, by the type of the field


@dataclass(frozen=True)
class RecordPiece:
    """One file."""

    path: Path
    column: str = ""

    def items(self) -> Iterator[Item]:
        """Read it; what follows a break is reported once."""
        number = 0
        try:
            for example in _examples(self.path):
                yield self._item(_features(example), number)
                number += 1
        except (OSError, EOFError, ValueError, IndexError):
            yield Item(f"{self.path.name}:{number}", problem="archive cannot be read to its end")

    def _item(self, features: dict[str, bytes], number: int) -> Item:
        picture, key = find_name(features, PICTURES), find_name(features, IDS)
        caption = find_name(features, (self.column.lower(),) if self.column else CAPTIONS)
        name = features[key].decode("utf-8", "backslashreplace") if key else str(number)
        id = safe_id(f"{self.path.stem}/{name}")
        if picture is None:
            return Item(id, problem="no picture")
        content = features[picture]
        return with_caption(Item(id, load=lambda: content), features[caption] if caption else None)


def _examples(path: Path) -> Iterator[bytes]:
    """Every record: its length, a checksum, its bytes, a checksum.

    Raises:
        EOFError: The file ends within one, or one is larger than `LARGEST`.
    """
    with opened(path) as file:
        while head := file.read(12):
            length = int.from_bytes(head[:8], "little")
            body = file.read(length + 4) if length <= LARGEST else b""
            if len(head) < 12 or len(body) < length + 4:
                raise EOFError
            yield body[:length]


def _features(example: bytes) -> dict[str, bytes]:
    """The first value of each feature of an example that holds bytes, by its name.

    Raises:
        ValueError: It is no example.
        IndexError: It is cut off.
    """
    found: dict[str, bytes] = {}
    for features in _parts(example, 1):
        for entry in _parts(features, 1):
            name = b"".join(_parts(entry, 1)).decode("utf-8", "backslashreplace")
            values = [value for feature in _parts(entry, 2) for held in _parts(feature, 1) for value in _parts(held, 1)]
            if values:
                found[name] = values[0]
    return found


def _parts(message: bytes, wanted: int) -> list[bytes]:
    """The fields of a message in protocol buffers' format that have a number, and a length."""
    parts = []
    place = 0
    while place < len(message):
        tag, place = _number(message, place)
        kind = tag & 7
        if kind == 0:
            _, place = _number(message, place)
            continue
        if kind == 2:
            size, place = _number(message, place)
        elif kind in _SIZES:
            size = _SIZES[kind]
        else:
            raise ValueError("no example")
        if place + size > len(message):
            raise IndexError
        if kind == 2 and tag >> 3 == wanted:
            parts.append(message[place : place + size])
        place += size
    return parts


def _number(message: bytes, place: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and the place behind it."""
    number = shift = 0
    while message[place] > 0x7F:
        number |= (message[place] & 0x7F) << shift
        place, shift = place + 1, shift + 7
    return number | message[place] << shift, place + 1
