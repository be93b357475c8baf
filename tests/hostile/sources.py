"""Hostile pictures, lists of prompts, training sets and archives, made from a seeded generator in an empty folder."""

from __future__ import annotations

import csv
import io
import json
import os
import struct
import tarfile
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from data_pictures import example, framed
from hostile import EPS, XPM
from hostile.damage import (
    BROKEN_TEXT,
    NUMBERS,
    damaged_bytes,
    damaged_document,
    damaged_place,
    text,
    value,
)
from hostile.judge import Input
from unmemorize.core.pictures import Unusable, read_picture
from unmemorize.data.captions import pieces
from unmemorize.data.intake import read_pieces
from unmemorize.data.labels import read_labelled
from unmemorize.data.source import read_prompts, read_references

SIZE = (16, 16)


# Pictures.

UNPACKED = zlib.compress(b"a" * 30_000_000)
MODES = ("RGB", "RGBA", "L", "LA", "P", "1", "I;16", "CMYK", "YCbCr", "F", "I")
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "ICO", "PPM", "TGA", "JPEG2000", "PCX", "SGI", "DDS")


def sound_picture(rng: Random) -> bytes:
    """A picture of any format and mode that the two of them allow."""
    image = Image.frombytes("RGB", (24, 20), rng.randbytes(24 * 20 * 3))
    mode, kind = rng.choice(MODES), rng.choice(FORMATS)
    file = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of formats that will not be written any more
            (image.convert("L").convert(mode) if mode in ("I;16", "LA") else image.convert(mode)).save(file, kind)
    except (OSError, ValueError, KeyError):
        file = io.BytesIO()
        image.save(file, "PNG")
    return file.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_with(*chunks: bytes, size: tuple[int, int] = (4, 4), data: bytes | None = None) -> bytes:
    """A PNG with chunks between its header and its pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0))
    pixels = zlib.compress(b"".join(b"\0" + bytes(3 * 4) for _ in range(4))) if data is None else data
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def odd_picture(rng: Random) -> bytes:
    """A picture that unpacks to megabytes, claims to be enormous, says odd things of itself, or is none."""
    exif = Image.Exif()
    exif[274] = rng.choice((0, 6, 9, 65535))
    turned, file = exif.tobytes(), io.BytesIO()
    Image.new("RGB", (8, 6)).save(file, "JPEG", exif=damaged_bytes(rng, turned)[:60_000])
    makes = (
        lambda: png_with(chunk(b"zTXt", b"workflow\0\0" + UNPACKED)),
        lambda: png_with(chunk(b"iCCP", b"icc\0\0" + UNPACKED)),
        lambda: png_with(chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + UNPACKED)),
        lambda: png_with(chunk(b"tEXt", b"prompt\0" + b"a" * 5_000_000)),
        lambda: png_with(chunk(b"eXIf", damaged_bytes(rng, turned[6:]))),
        lambda: png_with(size=(rng.choice((0, 1, 70_000, 2**31 - 1)), rng.choice((0, 1, 70_000)))),
        lambda: png_with(data=UNPACKED),
        lambda: png_with(chunk(b"acTL", struct.pack(">II", 2**31, 0))),
        lambda: png_with(chunk(b"tRNS", b"\0" * rng.randrange(9)), chunk(b"PLTE", b"\0" * rng.randrange(9))),
        lambda: b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b";",
        lambda: (
            b"BM" + rng.randbytes(12) + struct.pack("<IiiHHI", 40, -4, -(2**31), 1, 24, rng.randrange(5)) + bytes(99)
        ),
        lambda: b"II*\0\x08\0\0\0" + rng.randbytes(rng.randrange(80)),
        lambda: file.getvalue(),
        lambda: EPS,
        lambda: XPM,
        lambda: b"SIMPLE  =                    T" + b" " * 2850,
        lambda: b"\xd7\xcd\xc6\x9a" + rng.randbytes(60),
        lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        lambda: b"<html>404</html>",
    )
    return rng.choice(makes)()


def picture_bytes(rng: Random) -> bytes:
    """A picture that is odd, damaged, or sound."""
    draw = rng.random()
    if draw < 0.4:
        return odd_picture(rng)
    return damaged_bytes(rng, sound_picture(rng)) if draw < 0.9 else sound_picture(rng)


def pictures(rng: Random, folder: Path) -> Input:
    """A picture, in a file of its own and as the one of a folder."""
    content = picture_bytes(rng)
    path = folder / f"a{rng.choice(('.png', '.jpg', '.webp', '.gif', '.tiff', '.bmp', '.avif'))}"
    path.write_bytes(content)

    def use() -> None:
        try:
            image = read_picture(content)
        except Unusable:
            pass
        else:
            assert image.mode == "RGB"
        read_references(folder, SIZE)

    return Input(f"{path.name}: {content[:60]!r}", use)


# Lists.


def prompts(rng: Random, folder: Path) -> Input:
    """A file of prompts."""
    kind = rng.choice(("csv", "tsv", "jsonl", "json", "txt", "parquet", "arrow", "tar", "tfrecord"))
    path = folder / f"prompts.{kind}"
    path.write_bytes(table_bytes(rng, kind))
    if rng.random() < 0.3:
        path.write_bytes(damaged_bytes(rng, path.read_bytes()))
    if rng.random() < 0.05:
        damaged_place(rng, path)
    column = rng.choice(("", "", "", "caption", text(rng)[:100]))
    return Input(f"{path.name}, column {column[:20]!r}", lambda: read_prompts(path, column))


def labels(rng: Random, folder: Path) -> Input:
    """Prompts with labels, clusters and copies, as people keep them in tables."""
    kind = rng.choice(("csv", "tsv", "jsonl", "json", "txt"))
    names = [
        "prompt",
        rng.choice(("memorized", "label", "Label ")),
        rng.choice(("copies", "cluster", "kind", "prompt")),
    ]
    words = ("1", "0", "true", "no", "", "2", "0.5", "yes", 1, 0, True, None, 1.5)
    rows = [[text(rng), rng.choice((*words, *words, value(rng))), value(rng)] for _ in range(rng.randrange(8))]
    rows += [["a red boat", 1, 3], ["a blue lake", 0, 2]]
    path = folder / f"labels.{kind}"
    if kind.startswith("json"):
        path.write_text("\n".join(json.dumps(dict(zip(names, row, strict=True))) for row in rows))
    else:
        path.write_bytes(
            delimited(rng, names, [[str(cell) for cell in row] for row in rows], "\t" if kind == "tsv" else ",")
        )
    if rng.random() < 0.2:
        path.write_bytes(damaged_bytes(rng, path.read_bytes()))
    if rng.random() < 0.05:
        damaged_place(rng, path)
    return Input(path.name, lambda: read_labelled(path, rng.choice(("", "", "prompt", text(rng)[:50]))))


def masks(rng: Random, folder: Path) -> Input:
    """Sound pictures with a box each, which the metadata says varies: of any numbers, or none."""
    numbers = (0, 1, 5, 12, 24, -1, 2**40, 0.5, "7", True, *NUMBERS)
    boxes = [
        rng.choice(([rng.choice(numbers) for _ in range(rng.choice((4, 4, 4, 4, 3, 5, 0)))], value(rng)))
        for _ in range(rng.randrange(1, 4))
    ]
    rows = []
    for number, box in enumerate(boxes):
        Image.frombytes("RGB", (24, 20), rng.randbytes(24 * 20 * 3)).save(folder / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "text": "a red boat", "mask": box})
    if rng.random() < 0.7:
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    else:
        cells = [
            [row["file_name"], row["text"], rng.choice((json.dumps(row["mask"]), str(row["mask"])))] for row in rows
        ]
        (folder / "metadata.csv").write_bytes(delimited(rng, ["file_name", "text", "mask"], cells, ","))
    return Input(repr(boxes)[:200], lambda: read_references(folder, SIZE))


def table_bytes(rng: Random, kind: str) -> bytes:
    """A list of captions as text, or as a table whose cells may be of any kind."""
    names = rng.choice(
        (["caption"], ["prompt", "caption"], ["caption", "caption"], ["url", "TEXT "], [text(rng), "text"])
    )
    rows = [[text(rng) for _ in names] for _ in range(rng.randrange(6))]
    if kind == "txt":
        return "\n".join(cells[0] for cells in rows).encode("utf-8", "surrogatepass")
    if kind == "jsonl":
        return b"\n".join(json_line(rng, names) for _ in range(rng.randrange(5)))
    if kind in ("csv", "tsv"):
        return delimited(rng, names, rows, "\t" if kind == "tsv" else rng.choice(",;|\t"))
    if kind == "json":
        return document(rng)
    if kind == "tar":
        return archive(rng)
    if kind == "tfrecord":
        return records(rng)
    return columnar(rng, names, kind)


def json_line(rng: Random, names: list[str]) -> bytes:
    """A line of JSON: an object with values of any kind, or something else."""
    odd = (b"[" * 20_000, b'{"caption": ' + b"9" * 5_000 + b"}", b"null", b"{", b'{"caption": "\\ud800"}', b"NaN")
    if rng.random() < 0.2:
        return rng.choice(odd)
    row = {name[:100]: value(rng) for name in names}
    return json.dumps(row | {"file_name": rng.choice(("a.png", "./a.png", "b/../a.png", text(rng)))}).encode()


def document(rng: Random) -> bytes:
    """Captions in one JSON document, in the forms that tools leave, with other values among them."""
    names = [rng.choice(("a.png", "/old/set/a.png", "a", "../a.png", text(rng)[:200])) for _ in range(rng.randrange(5))]
    captions = [rng.choice((text(rng), [text(rng), "a lake"], {"caption": text(rng)}, value(rng))) for _ in names]
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    notes = [{"image_id": number, "caption": caption} for number, caption in enumerate(captions)]
    sentences = [image | {"sentences": [{"raw": text(rng)}, value(rng)]} for image in images]
    forms = (
        dict(zip(names, captions, strict=True)),
        captions,
        [{"image": name, "caption": caption} for name, caption in zip(names, captions, strict=True)],
        {"images": images, "annotations": notes},
        {"images": sentences},
        {"images": value(rng), "annotations": value(rng)},
    )
    content = json.dumps(rng.choice(forms)).encode()
    return damaged_document(rng, content) if rng.random() < 0.4 else content


def records(rng: Random) -> bytes:
    """A TFRecord file: examples with features of any name, or other messages, with lengths that they do not have."""
    held = b""
    for number in range(rng.randrange(4)):
        picture = picture_bytes(rng)[:100_000]
        features = {"key": b"%d" % number, rng.choice(("jpg", "png", "image", "a")): picture}
        features[rng.choice(("txt", "caption", text(rng)[:100]))] = text(rng).encode("utf-8", "replace")
        message = example(**features)
        record = framed(damaged_bytes(rng, message) if rng.random() < 0.3 else message)
        false = rng.choice((0, 5, 2**31, 2**40, 2**63)).to_bytes(8, "little")
        held += false + record[8:] if rng.random() < 0.1 else record
    return damaged_bytes(rng, held) if rng.random() < 0.2 else held


def delimited(rng: Random, names: list[str], rows: list[list[str]], delimiter: str) -> bytes:
    """CSV, with quotes as they should be or without, marks, other line ends, and a line of megabytes."""
    file = io.StringIO()
    quoting = rng.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONE if len(names) > 1 else csv.QUOTE_ALL))
    writer = csv.writer(file, delimiter=delimiter, quoting=quoting, escapechar="\\", quotechar='"')
    writer.writerow(names)
    writer.writerows(rows)
    if rng.random() < 0.1:
        file.write(rng.choice(("x" * 5_000_000, '"' * 2_000_000, delimiter * 2_000_000, "\r" * 1_000_000)))
    written = file.getvalue()
    if rng.random() < 0.3:
        written = written.replace("\r\n", rng.choice(("\r", "\n", "\n\n", "\0\n")))
    return rng.choice((b"", b"\xef\xbb\xbf")) + written.encode(rng.choice(("utf-8", "utf-16", "utf-8")), "replace")


def columnar(rng: Random, names: list[str], kind: str) -> bytes:
    """A Parquet or Arrow file whose columns may hold anything, twice."""
    count = rng.randrange(4)
    arrays = [column(rng, count) for _ in names]
    if rng.random() < 0.6:
        names = [*names, rng.choice(("image", "bytes", "jpg"))]
        arrays.append(picture_column(rng, count))
    if rng.random() < 0.4:
        names = [*names, rng.choice(("id", "file_name", "__key__"))]
        arrays.append(column(rng, count))
    table = pa.Table.from_arrays(arrays, names=[name[:100] for name in names])
    sink = io.BytesIO()
    if kind == "parquet":
        pq.write_table(
            table, sink, use_dictionary=rng.random() < 0.5, compression=rng.choice(("none", "zstd", "snappy"))
        )
        return sink.getvalue()
    opened = pa.ipc.new_stream if rng.random() < 0.5 else pa.ipc.new_file
    with opened(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def column(rng: Random, count: int) -> pa.Array:
    """A column of captions, or of something else."""
    kinds = (
        pa.array([text(rng) for _ in range(count)], pa.string()),
        pa.array([text(rng) for _ in range(count)], pa.large_string()),
        pa.array([text(rng) for _ in range(count)], pa.string_view()),
        pa.array([text(rng) for _ in range(count)]).cast(pa.string()).dictionary_encode(),
        pa.array([rng.choice(BROKEN_TEXT) for _ in range(count)], pa.binary()),
        pa.Array.from_buffers(
            pa.string(), 1, [None, pa.py_buffer(struct.pack("<ii", 0, 2)), pa.py_buffer(b"\xff\xfe")]
        ),
        pa.array(range(count), pa.int64()),
        pa.array([1e308] * count, pa.float64()),
        pa.array([[text(rng)] for _ in range(count)], pa.list_(pa.string())),
        pa.array([{"a": 1}] * count, pa.struct([("a", pa.int8())])),
        pa.nulls(count),
        pa.array([2**62] * count, pa.timestamp("us")),
        pa.array([2**62] * count, pa.duration("s")),
        pa.array([10**30] * count, pa.decimal128(38, 0)),
    )
    chosen = rng.choice(kinds)
    return chosen if len(chosen) == count else pa.concat_arrays([chosen] * count) if count else chosen.slice(0, 0)


def picture_column(rng: Random, count: int) -> pa.Array:
    """A column of pictures, as bytes or as Hugging Face stores them, or of something else."""
    held = [picture_bytes(rng) for _ in range(count)]
    paths = [rng.choice((None, "a.png", "../a.png", "/etc/passwd", "/dev/zero", text(rng))) for _ in range(count)]
    as_path = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    kinds = (
        pa.array(held, pa.binary()),
        pa.array(held, pa.large_binary()),
        pa.array([{"bytes": b, "path": p} for b, p in zip(held, paths, strict=True)], as_path),
        pa.array([{"bytes": None, "path": p} for p in paths], as_path),
        pa.array(
            [{"bytes": [1, 2], "path": 3}] * count, pa.struct([("bytes", pa.list_(pa.int8())), ("path", pa.int8())])
        ),
        pa.array([{"bytes": "text", "path": b"a"}] * count, pa.struct([("bytes", pa.string()), ("path", pa.binary())])),
        pa.array([{"bytes": None, "path": 3.5}] * count, pa.struct([("bytes", pa.null()), ("path", pa.float64())])),
        pa.array([{"bytes": None}] * count, pa.struct([("bytes", pa.binary())])),
        column(rng, count),
    )
    return rng.choice(kinds)


# Archives and folders.

MEMBER_KINDS = (tarfile.REGTYPE, tarfile.REGTYPE, tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE)
ENDINGS = (".png", ".txt", ".json", ".caption", ".jpg", "", ".cls")


def archive(rng: Random) -> bytes:
    """A tar: members of any name and kind, with sizes that they do not have, compressed or not."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=rng.choice(("w", "w:gz", "w:bz2", "w:xz"))) as tar:
        for number in range(rng.randrange(6)):
            member = tarfile.TarInfo(
                rng.choice((f"{number:03d}", "000", "./0", "../0", text(rng)[:120])) + rng.choice(ENDINGS)
            )
            content = rng.choice(
                (picture_bytes(rng)[:100_000], text(rng).encode("utf-8", "replace"), b'{"caption": 1}')
            )
            member.type, member.linkname = rng.choice(MEMBER_KINDS), text(rng)[:90]
            member.size = len(content) if member.isreg() else 0
            tar.addfile(member, io.BytesIO(content))
    content = file.getvalue()
    if rng.random() < 0.15:
        content = claimed(rng) + content
    return damaged_bytes(rng, content) if rng.random() < 0.3 else content


def claimed(rng: Random) -> bytes:
    """The header of a file that claims any number of bytes."""
    header = tarfile.TarInfo("000.png")
    header.size = rng.choice((2**33, 2**60, 2**63 - 1, 2**80))
    return header.tobuf(tarfile.GNU_FORMAT)


def folders(rng: Random, folder: Path) -> Input:
    """A training set in any layout, read as training pictures and by the data audit."""
    source = folder / "source"
    source.mkdir()
    for number in range(rng.randrange(1, 4)):
        place = source / rng.choice(("", "", f"{number:05d}", "a", ".hidden"))
        place.mkdir(exist_ok=True)
        (place / f"{rng.choice(('a', 'b', 'É'))}{rng.choice(('.png', '.PNG', '.jpg'))}").write_bytes(picture_bytes(rng))
    for _ in range(rng.randrange(4)):
        beside(rng, source)
    if rng.random() < 0.3:
        damaged_place(rng, rng.choice(sorted(path for path in source.rglob("*"))))
    return Input(str(sorted(str(p.relative_to(source)) for p in source.rglob("*"))), read_both(source, folder))


def beside(rng: Random, source: Path) -> None:
    """A file or link beside the pictures of a folder."""
    tables = ("metadata.jsonl", "metadata.csv", "metadata.parquet", "x.parquet", "x.arrow", "state.json", "x.tar")
    tables += ("captions.json", "x.tfrecord")
    others = (
        "b.heic",
        "c.jfif",
        "a.txt",
        "a.caption",
        "a.json",
        "a.png.txt",
        "Thumbs.db",
        "._a.png",
        "a.bin",
        "link",
        "bytes",
    )
    kind = rng.choice((*tables, *others))
    path = source / kind
    if path.exists() or path.is_symlink():
        return
    ending = path.suffix.lstrip(".")
    if kind == "link":
        path.symlink_to(rng.choice((".", "..", "link", "/etc", "a.png", "/dev/zero")))
    elif kind == "bytes":
        os.close(os.open(os.fsencode(source) + b"/caf\xe9" + rng.choice((b".png", b".txt", b"\n.png")), os.O_CREAT))
    elif kind == "state.json":
        path.write_bytes(damaged_document(rng, b'{"_data_files": [{"filename": "x.arrow"}]}'))
    elif kind == "captions.json" or ending in ("jsonl", "csv", "parquet", "arrow", "tar", "tfrecord"):
        path.write_bytes(table_bytes(rng, ending))
    else:
        path.write_bytes(rng.choice((*BROKEN_TEXT, json_line(rng, ["caption"]), text(rng).encode("utf-8", "replace"))))


def archives(rng: Random, folder: Path) -> Input:
    """A table or an archive as a training set."""
    kind = rng.choice(("tar", "tar", "tgz", "parquet", "arrow", "tfrecord"))
    path = folder / f"set.{kind}"
    path.write_bytes(table_bytes(rng, {"tgz": "tar"}.get(kind, kind)))
    return Input(path.name, read_both(path, folder))


def read_both(source: Path, folder: Path) -> Callable[[], None]:
    """Reads a source as every command does, and as the data audit does, which skips what is wrong."""

    def use() -> None:
        found = pieces(source)
        list(read_pieces(found, folder / "run"))
        for path in (folder / "run" / "shards").rglob("*.parquet"):
            pq.read_table(path).validate(full=True)
        read_references(source, SIZE)

    return use
