"""Words of captions in any script."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

# Scripts written without spaces: Thai, Lao, Myanmar, Khmer, kana, Han, and what extends them.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)
# A word may hold marks (vowel signs, accents that have no composed form) and joiners, which \w leaves out.
_MARKS = "\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0670\u0900-\u0dff\u1ab0-\u1aff\u200c\u200d\ufe00-\ufe0f"
_letter = f"(?![{_UNSPACED}])\\w"
_following = f"(?![{_UNSPACED}])[\\w{_MARKS}]"
_PICTOGRAPHS = "\u2600-\u27bf\U0001f000-\U0001faff"
_part = re.compile(f"[{_UNSPACED}]+|{_letter}(?:{_following})*(?:['’]{_letter}(?:{_following})*)*|[{_PICTOGRAPHS}]")
_unspaced = re.compile(f"[{_UNSPACED}]")


def normalise(text: str) -> str:
    """Text as it is compared: compatibility forms unified (NFKC), case folded, runs of white space single."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def words(text: str) -> list[str]:
    """The words of normalised text; of a script without spaces, its overlapping pairs of characters."""
    tokens: list[str] = []
    for part in _part.findall(text):
        if _unspaced.match(part) and len(part) > 1:
            tokens += [part[i : i + 2] for i in range(len(part) - 1)]
        else:
            tokens.append(part)
    return tokens


def spans(text: str) -> Iterator[tuple[int, int]]:
    """Where each word of a prompt starts and ends; of a script without spaces, each character."""
    for part in _part.finditer(text):
        if _unspaced.match(part.group()):
            for i in range(*part.span()):
                yield i, i + 1
        else:
            yield part.span()
