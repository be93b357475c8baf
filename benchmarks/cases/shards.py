"""What cutting work into shards costs: a million prompts planned, cut and joined, and many processes in one run.

Nothing is computed: a stub stands in for the model and says what a score is, so that all there is to measure is the
shards. `--prompts` (of about 70 characters, four seeds each) are scored by the code of `unmemorize detect` in a process
of its own, whose peak memory is its own.

Twelve processes start at once on one run of a thousand shards of one row (`--rounds` times). None may fail, every shard
must be done once, and the joined table has to be that of one process alone.
"""

from __future__ import annotations

import hashlib
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from harness import Cases, Options, Row, Study, table

from unmemorize.core.run import quiet
from unmemorize.core.shards import Rows, merge_shards, run_shards

SEEDS = 4
WORDS = ("a", "an", "the", "of", "on", "by", "photograph", "street", "owl", "harbour", "lamp", "red", "quiet", "map")
STARTERS, SHARDS = 12, 1000
HUNDREDTH = 100  # parts, of which a worker does one


def captions(count: int, path: Path) -> None:
    """Different prompts of twelve words and a number."""
    rng = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            file.write(f"{' '.join(rng.choices(WORDS, k=12))} {number}\n")


def scoring(run: Path) -> Any:
    """The work of `detect` on a run's prompts, with a stub."""
    from unmemorize.data.source import Stored
    from unmemorize.stages.detect import prompts_of
    from unmemorize.stages.stage import Work

    def do(prompts: Sequence[Any]) -> Rows:
        scores = [hash_of(prompt.text) for prompt in prompts]
        return [
            {"id": prompt.id, "method": "noise-gap", "seed": seed, "score": score + seed, "evaluations": 1}
            for prompt, score in zip(prompts, scores, strict=True)
            for seed in range(SEEDS)
        ]

    return Work("detect", "scores/detect.parquet", Stored(prompts_of(run)), do, size=32)


def stored(run: Path, path: Path) -> Row:
    """The peak memory in GB of a process that reads the prompts in a file and writes them to a run."""
    from unmemorize.data.source import read_prompts
    from unmemorize.stages.detect import write_prompts

    imported = peak()
    write_prompts(read_prompts(path), run)
    return {"imported_gb": imported, "peak_gb": peak()}


def worked(run: Path) -> Row:
    """The peak memory in GB of a worker, which does a hundredth of the shards of a run's prompts with a stub."""
    from unmemorize.core.crew import Part

    work = scoring(run)
    imported = peak()
    for _ in work.share(run, Part(HUNDREDTH // 2, HUNDREDTH)):
        pass
    return {"imported_gb": imported, "peak_gb": peak()}


def detected(run: Path, path: Path) -> Row:
    """Seconds of the processor and the peak memory in GB, of scoring the prompts in a file with a stub."""
    from unmemorize.core.specs import DetectSpec
    from unmemorize.stages import detect
    from unmemorize.stages.inputs import Inputs, bundle_of

    spec = DetectSpec(model="stub", prompts=str(path), seeds=SEEDS)
    stub: Any = SimpleNamespace(name="stub", fingerprint="")
    Inputs.of = lambda spec: Inputs(spec, stub, bundle_of(spec))  # type: ignore[method-assign, assignment]
    detect.scoring = lambda inputs, run, progress: scoring(run)
    imported, since = peak(), time.process_time()
    ranked = detect.detect(spec, run, quiet)
    top = ranked[0]
    return {
        "prompts": len(ranked),
        "shards": len(list((run / "shards" / "detect").glob("*.parquet"))),
        "rows": pq.read_metadata(run / "scores" / "detect.parquet").num_rows,
        "cpu_seconds": round(time.process_time() - since, 1),
        "imported_gb": imported,
        "peak_gb": peak(),
        "right": top["score"] == max(hash_of(text) for text in path.read_text().splitlines()) + (SEEDS - 1) / 2,
    }


def hash_of(text: str) -> float:
    """A score that depends on nothing but the text."""
    return float(int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big"))


def peak() -> float:
    """The most memory that this process has held, in GB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3)


def shared(run: Path) -> Row:
    """Do shards of one row until all are done by whichever process; the seconds that it took this one's processor."""
    done = []

    def do(items: Sequence[int]) -> Rows:
        done.extend(items)
        return [{"n": n, "square": n * n} for n in items]

    pa.Table.from_pylist([{"n": 0}])  # the first one imports pandas, where that is installed: no cost of a shard
    folder, since = run / "shards" / "squares", time.process_time()
    for _ in run_shards(range(SHARDS), do, folder=folder, size=1):
        pass
    return {"done": len(done), "cpu_seconds": time.process_time() - since}


def started(run: Path, count: int) -> list[subprocess.Popen[str]]:
    """So many processes that share a run, started together."""
    command = [sys.executable, "-m", "cases.shards", "shared", str(run)]
    place = Path(__file__).parents[1]
    return [subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE, text=True) for _ in range(count)]


def together(count: int, rounds: int, kept: Row) -> Row:
    """What processes that start together do to a run: those that fail, shards done twice, and what each shard costs."""
    failed = twice = different = 0
    seconds = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder)
            running = started(run, count)
            rows = [json.loads(out) for process in running if (out := process.communicate()[0])]
            failed += sum(process.returncode != 0 for process in running)
            twice += sum(row["done"] for row in rows) - SHARDS
            since = time.process_time()
            merge_shards(run / "shards" / "squares", run / "squares.parquet")
            joining = time.process_time() - since
            different += pq.read_table(run / "squares.parquet")["n"].to_pylist() != list(range(SHARDS))
            seconds.append(sum(row["cpu_seconds"] for row in rows) + joining)
    each = 1000 * sum(seconds) / len(seconds) / SHARDS
    return {"rounds": rounds, "failed": failed, "twice": twice, "different": different, "ms_a_shard": round(each, 2)}


def scored(count: int, kept: Row) -> Row:
    """`detected` in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "captions.txt"
        captions(count, path)
        return apart("detected", Path(folder) / "run", path)


def held(count: int, kept: Row) -> Row:
    """What a worker of so many prompts holds, and what reading them in one process does: each in its own process."""
    with tempfile.TemporaryDirectory() as folder:
        path, run = Path(folder) / "captions.txt", Path(folder) / "run"
        captions(count, path)
        return {"reader": apart("stored", run, path), "worker": apart("worked", run)}


def apart(what: str, *paths: Path) -> Row:
    """What a function of this module returns in a new process."""
    command = [sys.executable, "-m", "cases.shards", what, *map(str, paths)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
    row: Row = json.loads(done.stdout)
    return row


def measure(options: Options) -> Cases:
    """One process and twelve, then the prompts."""
    cases = {f"{n} processes": partial(together, n, options.rounds) for n in (1, STARTERS)}
    for count in options.prompts.split():
        cases[f"{int(count):,} prompts"] = partial(scored, int(count))
    most = max(map(int, options.prompts.split()))
    cases[f"{most:,} prompts, a worker"] = partial(held, most)
    return Cases({"shards": SHARDS, "seeds": SEEDS}, cases)


def page(numbers: Row) -> Iterator[str]:
    """What a shard costs, then what the prompts take."""
    of = {name: row for name, row in numbers["settings"].items() if name.endswith("processes")}
    starts = []
    for name, r in of.items():
        count = int(name.split()[0])
        failed, wrong = f"{r['failed']} of {r['rounds'] * count}", str(r["twice"] + r["different"])
        starts.append([str(count), f"{SHARDS:,}", failed, wrong, f"{r['ms_a_shard'] * SHARDS / 1000 / count:.1f}"])
    head = "started at once | shards | processes that failed | shards done twice or joined wrongly"
    yield from table(f"{head} | processor time of each, s", starts)
    sizes = []
    for name, r in numbers["settings"].items():
        if name.endswith("prompts"):
            each = 1000 * r["cpu_seconds"] / r["shards"]
            memory = f"{r['imported_gb']:.2f} | {r['peak_gb']:.2f}".split(" | ")
            sizes.append([name.split()[0], f"{r['rows']:,}", f"{r['shards']:,}", f"{each:.1f}", *memory])
    head = "prompts | rows | shards | processor time a shard, ms | memory once all is imported, GB | at its peak, GB"
    yield from ("", *table(head, sizes))
    for name, r in numbers["settings"].items():
        if name.endswith("a worker"):
            more = {who: 1000 * (of["peak_gb"] - of["imported_gb"]) for who, of in r.items()}
            yield from (
                "",
                f"Of {name.removesuffix(', a worker')} the process that reads their file holds "
                f"{more['reader']:.0f} MB above what is imported, a worker {more['worker']:.0f} MB.",
            )


STUDY = Study(
    title="Shards",
    about="A stub instead of a model, so that what is measured is the cutting, claiming, writing and joining.",
    page=page,
    measure=measure,
    options={"prompts": "10000 100000 1000000", "rounds": 3},
)

if __name__ == "__main__":
    what, *paths = sys.argv[1:]
    print(json.dumps(globals()[what](*map(Path, paths))))
