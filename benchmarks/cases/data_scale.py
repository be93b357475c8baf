"""How long the data audit takes, and how much memory, for 10 thousand, 100 thousand and a million captions.

Captions of twelve words on average, drawn from Zipf's law over a vocabulary that grows with the corpus, so that words
are said twice in a caption by chance. Planted: pictures repeated under one caption, words that the captions of one
picture share, words said three times in one caption, and sentences that differ in one word over one picture. What is
called a trigger is judged against what was planted, kind by kind. Every row has the hashes that reading leaves, so what
is measured is the analysis: duplicates, words, repeats, templates. Each size is a process of its own, so that its peak
memory is its own. `--rows` names other sizes.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from harness import Options, Row, Study, table

from unmemorize.data.candidates import Search
from unmemorize.data.database import database, open_parquet
from unmemorize.data.duplicates import group_pictures
from unmemorize.data.intake import ROWS
from unmemorize.data.repeats import SLOT, caption_templates, repeated_words
from unmemorize.data.words import Trigger, collect_captions, shared_words

PLANTED = 50  # triggers of each kind
SHARING = 8  # captions of a shared word, or of a template
TIMES = 3  # how often a planted word is said in one caption, and in how many others it is said once
BATCH = 50_000


def corpus(rows: int, path: Path) -> None:
    """Write rows as reading leaves them: 1 in 100 repeats the picture and caption before it."""
    rng = np.random.default_rng(0)
    vocabulary = int(40 * rows**0.5)  # Heaps' law: 4 thousand words at 10 thousand captions, 40 thousand at a million
    weights = 1 / np.arange(1, vocabulary + 1)
    cumulative = np.cumsum(weights / weights.sum())
    with pq.ParquetWriter(path, ROWS) as writer:
        for start in range(0, rows, BATCH):
            count = min(BATCH, rows - start)
            lengths = rng.poisson(11, count) + 1
            ids = np.searchsorted(cumulative, rng.random(lengths.sum())).clip(max=vocabulary - 1)
            picture = np.arange(start, start + count)
            words = [[f"w{i}" for i in part] for part in np.split(ids, np.cumsum(lengths)[:-1])]
            for i in range(1, count):
                if rng.random() < 0.01:
                    picture[i], words[i] = picture[i - 1], words[i - 1]
            if start == 0:
                plant(picture, words)
            writer.write_table(_table(start, picture, words))


def plant(picture: np.ndarray, words: list[list[str]]) -> None:
    """Plant triggers of each kind in the first rows: shared words, then words said again, then templates."""
    row = 0
    for i in range(PLANTED):
        for _ in range(SHARING):
            picture[row] = -1 - i
            words[row] = [*words[row], f"shared{i}"]
            row += 1
    for i in range(PLANTED):
        for times in (TIMES, *[1] * TIMES):
            picture[row] = row  # its own: of a picture repeated above, two captions would share the word
            words[row] = [*words[row], *[f"again{i}"] * times]
            row += 1
    for i in range(PLANTED):
        for k in range(SHARING):
            picture[row] = -1 - PLANTED - i
            words[row] = template(i, f"w{100 + k}")
            row += 1


def template(i: int, word: str) -> list[str]:
    """The i-th planted sentence, of words that other captions have too, with a word in its slot."""
    return [f"w{20 * i + 200}", f"w{20 * i + 201}", word, f"w{20 * i + 202}", f"w{20 * i + 203}"]


def right(t: Trigger) -> bool:
    """Whether a trigger is one of its kind that was planted, or a word of a planted template."""
    templates = [" ".join(template(i, SLOT)) for i in range(PLANTED)]
    if t.kind == "within":
        return t.word.startswith("again")
    if t.kind == "slot":
        return t.word in templates
    return "shared" in t.word or any(f" {t.word} " in f" {sentence} " for sentence in templates)


def judge(triggers: list[Trigger], name: str) -> Row:
    """How many triggers were planted, and how many of the planted ones are among them; `name` begins the words."""
    true = [t for t in triggers if right(t)]
    planted = {t.word for t in true if t.kind == "slot" or t.word.startswith(name)}
    return {
        "triggers": len(triggers),
        "precision": len(true) / len(triggers) if triggers else None,
        "recall": len(planted) / PLANTED,
    }


def _table(start: int, picture: np.ndarray, words: list[list[str]]) -> pa.Table:
    texts = [" ".join(w) for w in words]
    hashes = [np.random.default_rng(p & 0xFFFFFFFF).integers(0, 2**64, 3, np.uint64) for p in picture]
    pixels = [h[:2].tobytes() for h in hashes]
    embedding = [h.tobytes() * 64 for h in hashes]  # never compared: random perceptual hashes are far apart
    columns = {
        "row": np.arange(start, start + len(words)),
        "id": [str(i) for i in range(start, start + len(words))],
        "caption": texts,
        "text": texts,
        "words": words,
        "captioned_by": [""] * len(words),
        "width": np.full(len(words), 64, np.int32),
        "height": np.full(len(words), 64, np.int32),
        "file": pixels,
        "pixels": pixels,
        "perceptual": np.array([h[2] for h in hashes]),
        "embedding": embedding,
    }
    return pa.table(columns).cast(ROWS)


def find_and_group(connection: Any, search: Search) -> None:
    """All there is to do about near-duplicates."""
    for _ in search.take():
        pass
    group_pictures(connection, search.pairs)


def analysed(path: Path) -> Row:
    """Wall and processor seconds of every stage, and the peak resident memory of this process in GB.

    On a machine that does other work at the same time, the processor seconds are what the audit itself takes.
    """
    seconds, cpu, found = {}, {}, {}
    search = Search(path.parents[2])
    with tempfile.TemporaryDirectory() as work, database(Path(work) / "work") as connection:
        open_parquet(connection, [path], "items")
        for name, stage in (
            ("pictures", lambda connection: find_and_group(connection, search)),
            ("captions", collect_captions),
            ("words", shared_words),
            ("repeats", repeated_words),
            ("slots", caption_templates),
        ):
            since, spent = time.perf_counter(), time.process_time()
            found[name] = stage(connection)
            seconds[name] = round(time.perf_counter() - since, 2)
            cpu[name] = round(time.process_time() - spent, 2)
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "word_audit_cpu_seconds": round(sum(cpu.values()) - cpu["pictures"], 2),
        "word_audit_seconds": round(sum(seconds.values()) - seconds["pictures"], 2),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3),
        "across": judge(found["words"], "shared"),
        "within": judge(found["repeats"], "again"),
        "slot": judge(found["slots"], ""),
    }


def measure(options: Options) -> Row:
    """The analysis of every size, in a process of its own."""
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for rows in map(int, options.rows.split()):
            path = Path(folder) / str(rows) / "shards" / "data" / "000000000.parquet"
            path.parent.mkdir(parents=True)
            corpus(rows, path)
            command = [sys.executable, "-m", "cases.data_scale", str(path)]
            done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
            results.append({"rows": rows} | json.loads(done.stdout))
            print(results[-1], flush=True)
    return {"results": results}


def page(numbers: Row) -> Iterator[str]:
    """Seconds and memory, and what was found of what was planted."""
    rows, kinds = [], []
    for r in numbers["results"]:
        size, parts = f"{r['rows']:,}", ("captions", "words", "repeats", "slots")
        seconds = [r["seconds"]["pictures"], r["word_audit_seconds"], r["word_audit_cpu_seconds"]]
        each = " / ".join(f"{r['seconds'][name]:.1f}" for name in parts)
        rows.append([size, *(f"{s:.1f}" for s in seconds), each, f"{r['peak_gb']:.2f}"])
        for kind in ("across", "within", "slot"):
            precision = r[kind]["precision"]
            shown = "–" if precision is None else f"{precision:.3f}"
            kinds.append([size, kind, str(r[kind]["triggers"]), shown, f"{r[kind]['recall']:.3f}"])
    head = "captions / words / repeats / slots, s | peak memory, GB"
    yield from table(f"captions | duplicates, s | word audit, s | its processor time, s | {head}", rows)
    yield from ("", *table("captions | kind | triggers | precision | recall", kinds))


STUDY = Study(
    title="Scale of the data audit",
    about="Two cores that had other work, too: processor time says more than the clock. Captions with Zipf's word "
    "frequencies, and what was planted.",
    page=page,
    measure=measure,
    options={"rows": "10000 100000 1000000"},
)

if __name__ == "__main__":
    print(json.dumps(analysed(Path(sys.argv[1]))))
