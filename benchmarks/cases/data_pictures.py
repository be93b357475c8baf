"""Near-duplicate pictures: which altered copies the data audit finds, and what that costs up to ten million.

Recall is the share of altered copies that are found, of the testbed's training pictures (every fourth) and of tiles of
two photographs: where all pairs are compared whose hashes are within 7 bits, as up to a million; where those are within
3 bits or share a cell of embeddings, as above; and where they are within 3 bits. The cells are made of the testbed's
pictures and of 20,000 pieces of the photographs.

The pictures that are grouped (`--pictures`) are drawn as coefficients of cosines with the 1/f spectrum of photographs,
a tenth of them as variations of ten patterns. Of every hundred one repeats the pixels of the picture before it, and one
is a copy of it, a variation, with coefficients that are changed more or less. Each number of pictures is a process of
its own, so that its peak memory is its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from harness import Cases, Options, Row, Study, table
from PIL import Image
from sklearn.datasets import load_sample_images

from unmemorize.core.pictures import read_picture
from unmemorize.data.candidates import Search
from unmemorize.data.database import database, open_parquet, rows
from unmemorize.data.duplicates import SAME, are_near_duplicates, group_pictures, picture_groups
from unmemorize.data.hashes import Looks, looks_of
from unmemorize.data.intake import ROWS
from unmemorize.data.recall import ALTERATIONS, measure_recall
from unmemorize.testbed.embedded import PANEL

BATCH = 50_000
FILE = 20  # batches a file
GROUP = 5000  # rows that Parquet writes together
PIECES = 20_000  # of photographs
WAVES = 12  # cosines in each direction


def looks(coefficients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Perceptual hashes (n,) and embeddings (n, 16, 16) of grey pictures that are sums of cosines (n, 12, 12)."""
    places = (np.arange(16) + 0.5) * np.pi / 16
    cosines = np.cos(places[:, None] * np.arange(WAVES)).astype(np.float32)
    small = cosines @ coefficients @ cosines.T
    low = coefficients[:, :8, :8].reshape(len(coefficients), 64)
    bits = low > np.median(low, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(">u8")[:, 0], small / np.linalg.norm(small, axis=(1, 2), keepdims=True)


def drawn(rng: np.random.Generator, count: int) -> np.ndarray:
    """Coefficients with the spectrum of photographs, (count, 12, 12)."""
    frequency = np.hypot(*np.mgrid[:WAVES, :WAVES])
    frequency[0, 0] = np.inf
    return (rng.standard_normal((count, WAVES, WAVES), np.float32) / frequency).astype(np.float32)


def write_pictures(count: int, run: Path) -> np.ndarray:
    """Write rows as reading leaves them; returns the rows of copies that the rule calls that, which follow theirs."""
    rng = np.random.default_rng(0)
    patterns = drawn(np.random.default_rng(1), 10)
    planted = []
    for number, first in enumerate(range(0, count, BATCH * FILE)):
        path = run / "shards" / "data" / f"{number:09}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        with pq.ParquetWriter(path, ROWS, compression="none", use_dictionary=False) as writer:
            for start in range(first, min(first + BATCH * FILE, count), BATCH):
                size = min(BATCH, count - start)
                pictures = drawn(rng, size)
                pictures[::10] = 0.8 * pictures[::10] + patterns[rng.integers(0, 10, len(pictures[::10]))]
                copies = np.arange(11, size, 100)
                changed = rng.uniform(0, 0.35, (len(copies), 1, 1)).astype(np.float32) * drawn(rng, len(copies))
                pictures[copies] = pictures[copies - 1] + changed
                perceptual, small = looks(pictures)
                cosines = (small[copies] * small[copies - 1]).sum((1, 2))
                bits = np.bitwise_count(perceptual[copies] ^ perceptual[copies - 1])
                planted.append(start + copies[(bits <= 7) & (cosines >= SAME)])
                repeated = np.arange(1, size, 100)
                pixels = rng.integers(0, 2**64, (size, 2), np.uint64)
                for column in (perceptual, small, pixels):
                    column[repeated] = column[repeated - 1]
                embedding = np.repeat(small.reshape(size, 256) / 3**0.5, 3, axis=1).astype(np.float16)
                writer.write_table(_rows(start, perceptual, pixels, embedding), row_group_size=GROUP)
    return np.concatenate(planted)


def _rows(start: int, perceptual: np.ndarray, pixels: np.ndarray, embedding: np.ndarray) -> pa.Table:
    size = len(perceptual)
    columns = {
        "row": pa.array(np.arange(start, start + size)),
        "text": pa.array(np.arange(start, start + size)).cast(pa.string()),
        "pixels": pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), size, [None, pa.py_buffer(pixels)]),
        "perceptual": pa.array(perceptual.astype(np.uint64)),
        "embedding": pa.FixedSizeBinaryArray.from_buffers(pa.binary(1536), size, [None, pa.py_buffer(embedding)]),
    }
    columns["file"] = columns["pixels"]
    nothing = {field.name: pa.nulls(size, field.type) for field in ROWS if field.name not in columns}
    return pa.table(columns | nothing).select(ROWS.names).cast(ROWS)


def grouped(run: Path) -> Row:
    """Processor seconds of every part, how many copies are grouped, and the peak resident memory in GB."""
    seconds, since = {}, time.process_time()

    def spent(part: str) -> None:
        nonlocal since
        seconds[part] = round(time.process_time() - since, 1)
        since = time.process_time()

    search = Search(run)
    for _ in search.take():
        pass
    spent("search")
    with database(run / "work") as connection:
        open_parquet(connection, search.files, "items")
        group_pictures(connection, search.pairs)
        spent("group")
        groups = sum(1 for _ in picture_groups(connection))
        spent("list")
        copies = pa.table({"row": np.load(run / "planted.npy")})
        connection.register("copies", copies)
        found = rows(
            connection,
            """SELECT copy.grp = picture.grp AS found FROM copies JOIN pictures copy USING (row)
            JOIN pictures picture ON picture.row = copies.row - 1""",
        )
    return {
        "compared": search.how,
        "cpu_seconds": seconds,
        "groups": groups,
        "planted": len(copies),
        "found": sum(row["found"] for row in found),
        "peak_gb": round(peak_memory(), 2),
    }


def peak_memory() -> float:
    """The most memory that this process has held, in GB; `getrusage` counts the process that started it, too."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**20


def recalls() -> Row:
    """The share of altered copies that are found, by pictures, by how they are looked for, and by alteration."""
    photographs = [Image.fromarray(photograph) for photograph in load_sample_images().images]
    tiles = [p.crop((x, y, x + 160, y + 160)) for p in photographs for x in range(0, 640, 160) for y in (0, 160, 260)]
    testbed = [read_picture(path) for path in sorted((PANEL / "images").glob("*.png"))]
    with tempfile.TemporaryDirectory() as folder:
        pieces = (piece(np.random.default_rng(number), photographs) for number in range(PIECES))
        search = Search(Path(folder), many=0)
        written = [vars(looks_of(picture)) | {"row": row} for row, picture in enumerate(chain(testbed, pieces))]
        (search.run / "shards" / "data").mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(written, ROWS), search.run / "shards" / "data" / "000000000.parquet")
        for _ in search.take():
            pass
        ways = {"7 bits": are_near_duplicates, "cells": search.finds, "3 bits": within_three}
        sources = {"testbed": testbed[::4], "photographs": tiles}
        return {
            f"{name}, {way}": measure_recall(pictures, finds) | {"pictures": len(pictures)}
            for name, pictures in sources.items()
            for way, finds in ways.items()
        }


def piece(rng: np.random.Generator, photographs: list[Image.Image]) -> Image.Image:
    """A square of one of the photographs, somewhere."""
    photograph = photographs[rng.integers(len(photographs))]
    side = int(rng.integers(40, 420))
    x, y = rng.integers(photograph.width - side), rng.integers(photograph.height - side)
    return photograph.crop((x, y, x + side, y + side))


def within_three(one: Looks, other: Looks) -> bool:
    return (one.perceptual ^ other.perceptual).bit_count() <= 3 and are_near_duplicates(one, other)


def measured(count: int, kept: Row) -> Row:
    """`grouped` in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "planted.npy", write_pictures(count, Path(folder)))
        command = [sys.executable, "-m", "cases.data_pictures", folder]
        done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
    row: Row = json.loads(done.stdout)
    return row


def measure(options: Options) -> Cases:
    """Recall, then each number of pictures."""
    cases: dict[str, Callable[[Row], Row]] = {"recall": lambda kept: recalls()}
    for count in options.pictures.split():
        cases[f"{int(count):,}"] = partial(measured, int(count))
    return Cases({"pictures": "1/f"}, cases)


def page(numbers: Row) -> Iterator[str]:
    """Recall by alteration, then seconds and memory."""
    rows = dict(numbers["settings"])
    recall = rows.pop("recall")
    shares = [[alteration, *(f"{found[alteration]:.2f}" for found in recall.values())] for alteration in ALTERATIONS]
    counts = [f"{name} ({found['pictures']})" for name, found in recall.items()]
    yield from table(" | ".join(["altered copies found", *counts]), shares)
    costs = []
    for count, r in rows.items():
        seconds = (f"{r['cpu_seconds'][part]:.0f}" for part in ("search", "group", "list"))
        how = "7 bits" if r["compared"] == "all pairs within 7 bits" else "cells"
        costs.append(
            [count, how, *seconds, f"{r['peak_gb']:.2f}", f"{r['planted']:,}", f"{r['found'] / r['planted']:.4f}"]
        )
    head = "search, processor s | grouping | listing groups | peak memory, GB | copies planted | found"
    yield from ("", *table(f"pictures | looked for by | {head}", costs))


STUDY = Study(
    title="Near-duplicate pictures",
    about="Which altered copies are found, and what grouping costs: two cores that had other work, too.",
    page=page,
    measure=measure,
    options={"pictures": "100000 1000000 3000000 10000000"},
)

if __name__ == "__main__":
    print(json.dumps(grouped(Path(sys.argv[1]))))
