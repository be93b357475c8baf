"""Near-duplicate pictures: which altered copies the data audit finds, and what grouping costs up to ten million.

Recall is the share of altered copies that are found, of the testbed's training pictures (every fourth) and of tiles of
two photographs, by each of the two rules: hashes within 7 bits up to a million pictures, within 3 above.

The pictures that are grouped (`--pictures`) have uniform random hashes. Of every hundred one repeats the pixels of the
picture before it, and one is a copy of the picture before it at 0 to 7 bits. All copies within the bits of the rule,
and no others, should be grouped. Each number of pictures is a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from harness import Cases, Options, Row, Study, table
from PIL import Image
from sklearn.datasets import load_sample_images

from unmemorize.core.pictures import read_picture
from unmemorize.data.database import database, open_parquet
from unmemorize.data.duplicates import Rule, group_pictures, picture_groups
from unmemorize.data.intake import ROWS
from unmemorize.data.recall import ALTERATIONS, measure_recall
from unmemorize.testbed.embedded import IMAGES

BATCH = 50_000


def hashed_pictures(count: int, path: Path) -> np.ndarray:
    """Write rows with random hashes; returns the bits that planted copies differ in, (copies,)."""
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(1024, 768)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    stored = pa.array([e.astype(np.float16).tobytes() for e in embeddings], pa.binary())
    all_bits = []
    with pq.ParquetWriter(path, ROWS) as writer:
        for start in range(0, count, BATCH):
            size = min(BATCH, count - start)
            perceptual = rng.integers(0, 2**64, size, np.uint64)
            pixels = rng.integers(0, 2**64, (size, 2), np.uint64)
            embedding = rng.integers(0, len(embeddings), size)
            repeated, original = np.arange(1, size, 100), np.arange(10, size - 1, 100)
            for column in (perceptual, pixels, embedding):
                column[repeated] = column[repeated - 1]
            bits = rng.integers(0, 8, len(original))
            flips = rng.random((len(bits), 64)).argsort(1).argsort(1) < bits[:, None]
            perceptual[original + 1] = perceptual[original] ^ np.packbits(flips, axis=1).view(">u8")[:, 0]
            embedding[original + 1] = embedding[original]
            all_bits.append(bits)
            columns = {
                "row": pa.array(np.arange(start, start + size)),
                "text": pa.array(np.arange(start, start + size)).cast(pa.string()),
                "pixels": pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), size, [None, pa.py_buffer(pixels)]),
                "perceptual": pa.array(perceptual),
                "embedding": stored.take(pa.array(embedding)),
            }
            columns["file"] = columns["pixels"]
            nothing = {field.name: pa.nulls(size, field.type) for field in ROWS if field.name not in columns}
            writer.write_table(pa.table(columns | nothing).select(ROWS.names).cast(ROWS))
    return np.concatenate(all_bits)


def grouped(path: Path) -> Row:
    """The processor seconds of grouping pictures, the number of groups, and the peak resident memory in GB."""
    with tempfile.TemporaryDirectory() as work, database(Path(work) / "work") as connection:
        open_parquet(connection, [path], "items")
        since = time.process_time()
        rule = group_pictures(connection)
        grouping = time.process_time() - since
        groups = sum(1 for _ in picture_groups(connection))
        listing = time.process_time() - since - grouping
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "rule": rule.name,
        "bits": rule.bits,
        "grouping_cpu_seconds": round(grouping, 1),
        "listing_cpu_seconds": round(listing, 1),
        "groups": groups,
        "peak_gb": round(peak, 2),
    }


def recalls() -> Row:
    """The share of altered copies that each rule finds, by pictures, bits and alteration."""
    photographs = [Image.fromarray(photograph) for photograph in load_sample_images().images]
    tiles = [p.crop((x, y, x + 160, y + 160)) for p in photographs for x in range(0, 640, 160) for y in (0, 160, 260)]
    sources = {"testbed": [read_picture(path) for path in sorted(IMAGES.glob("*.png"))[::4]], "photographs": tiles}
    return {
        f"{name}, {bits} bits": measure_recall(pictures, Rule(bits)) | {"pictures": len(pictures)}
        for name, pictures in sources.items()
        for bits in (7, 3)
    }


def measured(count: int, kept: Row) -> Row:
    """`grouped` in a process of its own, beside what should be grouped."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pictures.parquet"
        bits = hashed_pictures(count, path)
        command = [sys.executable, "-m", "cases.data_pictures", str(path)]
        done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
    row: Row = json.loads(done.stdout)
    repeated = -(-count // 100)
    return row | {"planted": repeated + int((bits <= row["bits"]).sum())}


def measure(options: Options) -> Cases:
    """Recall, then each number of pictures."""
    cases: dict[str, Callable[[Row], Row]] = {"recall": lambda kept: recalls()}
    for count in options.pictures.split():
        cases[f"{int(count):,}"] = partial(measured, int(count))
    return Cases({"copies": "0 to 7 bits"}, cases)


def page(numbers: Row) -> Iterator[str]:
    """Recall by alteration, then seconds and memory."""
    rows = dict(numbers["settings"])
    recall = rows.pop("recall")
    shares = [[alteration, *(f"{found[alteration]:.2f}" for found in recall.values())] for alteration in ALTERATIONS]
    counts = [f"{name} ({found['pictures']})" for name, found in recall.items()]
    yield from table(" | ".join(["altered copies found", *counts]), shares)
    costs = []
    for count, r in rows.items():
        seconds = f"{r['grouping_cpu_seconds']:.0f}", f"{r['listing_cpu_seconds']:.0f}"
        costs.append([count, r["rule"], *seconds, f"{r['peak_gb']:.2f}", f"{r['groups']:,}", f"{r['planted']:,}"])
    head = "pictures | rule | grouping, processor s | listing groups, processor s | peak memory, GB | groups | planted"
    yield from ("", *table(head, costs))


STUDY = Study(
    title="Near-duplicate pictures",
    about="Which altered copies are found, and what grouping costs: two cores that had other work, too.",
    page=page,
    measure=measure,
    options={"pictures": "100000 1000000 2000000 5000000 10000000"},
)

if __name__ == "__main__":
    print(json.dumps(grouped(Path(sys.argv[1]))))
