"""Text from elsewhere (prompts, captions, names of files and layers) made harmless for each place that shows it."""

from __future__ import annotations

import json
import math
import re
from typing import Any

# Control characters of the second range, line and paragraph separators, changes of the reading direction, halves of
# characters, and two code points that YAML and XML do not take.
_ACTING = "\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff"
_unprintable = re.compile(f"[\x00-\x1f{_ACTING}]")
_raw = re.compile(f"[{_ACTING}]")
_forbidden = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_markdown = re.compile(r"[\\`*_{}\[\]<>()#|!~$@:]|(?<=www)\.", re.IGNORECASE)


def is_text(text: str) -> bool:
    """Whether UTF-8 can hold it: bytes of an argument or a file's name that are no text are halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(text: str) -> str:
    r"""Text on one line that moves no cursor and changes no reading direction: such characters become `\x1b`, `\n`."""
    return _unprintable.sub(lambda match: match.group().encode("unicode_escape").decode(), text)


def shortened(text: str, most: int) -> str:
    """Text of at most `most` characters: the middle of a longer one is left out."""
    if len(text) <= most:
        return text
    tail = (most - 1) // 2
    head = most - 1 - tail
    return f"{text[:head]}…{text[len(text) - tail :]}"


def to_json(value: Any, *, indent: int | None = None, separators: tuple[str, str] | None = None) -> str:
    """JSON that every parser reads: numbers that are not finite are null, and nothing in it acts on a terminal."""
    text = json.dumps(_finite(value), indent=indent, separators=separators, ensure_ascii=False, allow_nan=False)
    return _raw.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def from_json(text: str | bytes) -> Any:
    """The value of a JSON document.

    Raises:
        ValueError: It is none: also where it is nested more deeply, or has longer numbers, than Python reads.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def well_formed(text: str) -> str:
    """Text in which what HTML and XML cannot hold, such as NUL, is a replacement character."""
    return _forbidden.sub("\N{REPLACEMENT CHARACTER}", text)


def markdown(text: str) -> str:
    """Text on one line that Markdown shows as it is: no markup, no HTML, no links."""
    line = " ".join(well_formed(text).splitlines()).replace("&", "&amp;")
    return _markdown.sub(lambda match: f"\\{match.group()}", line)
