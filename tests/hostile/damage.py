"""What goes wrong with text, bytes, documents, tables and files: drawn from a seeded generator."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq

TEXTS = (
    "",
    " \t ",
    "\x1b]0;owned\x07\x1b[2J",
    "\x9b31m red",
    "two\nlines\r\n",
    "a\0b",
    "\ufeffmarked",
    "\u202egnissim",
    "\u2028\u2029\x85",
    "<script>alert(1)</script>",
    "![a](javascript:alert(1)) <b>",
    "[red]a[/red] [/] \\[",
    "{{ 7 * 7 }} ${7 * 7} %s {0}",
    "'; DROP TABLE items; --",
    '"an opened quote',
    "a,b;c\td|e",
    "../../../../etc/passwd",
    "/dev/null",
    "C:\\con",
    "~root",
    "日本語の火山 بركان أحمر",
    "👩🏽‍🚀 e\u0301 \ufffe",
    "x" * 3_000,
    "word " * 5_000,
    "-1",
    "NaN",
    "1e400",
    "0" * 5_000,
    "constructor",
    "None",
)
NUMBERS = (0, -1, 1, 2**31, 2**53 + 1, -(2**63), 2**64, 10**40, 1e308, -1e308, 5e-324, float("nan"), float("inf"), 0.5)
BROKEN_TEXT = (b"\xff\xfe\x00", b"caf\xe9", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\0\0\0\0", b"\x1f\x8b\x08", b"PAR1")


def text(rng: Random) -> str:
    """A text that acts on something, breaks something, or is ordinary."""
    return rng.choice((*TEXTS, "a red boat", "two owls", "a red boat, a lake"))


def value(rng: Random, depth: int = 0) -> object:
    """A value of any kind, where one of another kind is expected."""
    simple = [text(rng), rng.choice(NUMBERS), rng.choice((None, True, False, [], {}))]
    if depth < 2:
        simple.append([value(rng, depth + 1) for _ in range(rng.randrange(4))])
        simple.append({text(rng)[:50]: value(rng, depth + 1) for _ in range(rng.randrange(3))})
    return rng.choice(simple)


def damaged_bytes(rng: Random, content: bytes) -> bytes:
    """A file's content cut, flipped, doubled, emptied, or another file's."""
    place = rng.randrange(len(content) + 1)
    ways = {
        "cut": content[:place],
        "without a part": content[:place] + content[place + rng.randrange(1, 64) :],
        "doubled": content * 2,
        "empty": b"",
        "zeros": b"\0" * min(len(content), 4096),
        "other": rng.choice(BROKEN_TEXT) * rng.randrange(1, 40),
        "inserted": content[:place] + rng.choice(BROKEN_TEXT) + content[place:],
        "flipped": _flipped(rng, content),
    }
    return ways[rng.choice(list(ways))]


def _flipped(rng: Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.randrange(1, 9)):
        if changed:
            changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def damaged_document(rng: Random, content: bytes) -> bytes:
    """JSON with another value, a missing one, or none at all."""
    way = rng.randrange(8)
    if way == 0:
        return damaged_bytes(rng, content)
    if way == 1:
        return b"[" * 100_000
    if way == 2:
        return b'{"a": ' * 50_000
    if way == 3:
        return json.dumps(value(rng)).encode()
    document = json.loads(content)
    _spoil(rng, document)
    written = json.dumps(document)
    return written.replace('"9999"', "9" * 5_000).encode() if way == 4 else written.encode()


def _spoil(rng: Random, document: object) -> None:
    """Change one value of a document, at any depth."""
    keys = list(document) if isinstance(document, dict) else list(range(len(document)))
    if not keys:
        return
    key = rng.choice(keys)
    inner = document[key]
    if isinstance(inner, dict | list) and inner and rng.random() < 0.7:
        _spoil(rng, inner)
    elif rng.random() < 0.3 and isinstance(document, dict):
        del document[key]
    else:
        document[key] = rng.choice((value(rng), "9999"))


def damaged_table(rng: Random, path: Path) -> None:
    """A Parquet file with a column missing, renamed, twice, of another type, or with other values; or other bytes."""
    way = rng.randrange(9)
    if way == 0:
        path.write_bytes(damaged_bytes(rng, path.read_bytes()))
        return
    table = pq.read_table(path)
    names = table.column_names
    if not names:
        return
    place = rng.randrange(len(names))
    column = table.column(place)
    if way == 1:
        table = table.remove_column(place)
    elif way == 2:
        table = table.append_column(names[place], column)
    elif way == 3:
        table = table.slice(0, 0)
    elif way == 4:
        table = table.slice(0, rng.randrange(len(table) + 1))
    elif way == 5:
        table = pa.concat_tables([table, table])
    elif way == 6:
        table = table.set_column(place, names[place], pa.nulls(len(table), rng.choice((pa.null(), column.type))))
    else:
        table = table.set_column(place, names[place], _other_values(rng, column))
    pq.write_table(table.replace_schema_metadata(None if rng.random() < 0.2 else table.schema.metadata), path)


def _other_values(rng: Random, column: pa.ChunkedArray) -> pa.Array:
    """As many values as a column has: others of its type, or of another type."""
    count = len(column)
    if pa.types.is_floating(column.type):
        return pa.array([rng.choice((float("nan"), 1e308, -1e308, float("inf"), 0.5)) for _ in range(count)])
    if pa.types.is_integer(column.type) and rng.random() < 0.5:
        return pa.array([rng.choice((-1, 0, 2**62, -(2**63))) for _ in range(count)], pa.int64())
    if pa.types.is_list(column.type) and rng.random() < 0.7:
        longer = [[*(items or ()), *(items or ())[:1]] * rng.randrange(3) for items in column.to_pylist()]
        return pa.array(longer, column.type)
    if pa.types.is_string(column.type) and rng.random() < 0.7:
        return pa.array([text(rng) for _ in range(count)])
    kinds = ([text(rng).encode()] * count, [[1]] * count, [{"a": 1}] * count, [True] * count, [3.5] * count)
    return pa.array(rng.choice(kinds))


def damaged_place(rng: Random, path: Path) -> None:
    """Something else under a file's or folder's name: nothing, a pipe, a folder, a link that leads nowhere."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
    way = rng.choice(("nothing", "pipe", "folder", "dangling", "loop", "file"))
    if way == "pipe":
        os.mkfifo(path)
    elif way == "folder":
        path.mkdir()
    elif way == "dangling":
        path.symlink_to("nowhere")
    elif way == "loop":
        path.symlink_to(path.name)
    elif way == "file":
        path.write_bytes(rng.choice(BROKEN_TEXT))


def damaged_folder(rng: Random, folder: Path) -> str:
    """Damage one file of a folder, by its kind; returns its name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = rng.choice(files)
    name = str(path.relative_to(folder))
    if rng.random() < 0.15:
        damaged_place(rng, path)
    elif path.suffix == ".json":
        path.write_bytes(damaged_document(rng, path.read_bytes()))
    elif path.suffix == ".parquet":
        damaged_table(rng, path)
    else:
        path.write_bytes(damaged_bytes(rng, path.read_bytes()))
    return name
