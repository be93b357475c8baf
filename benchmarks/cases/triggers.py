"""Whether the data audit finds the words that were planted: the training rows of branch C, and of the words' model.

The audit is not told what is planted. `--data`, a folder with the testbed's artwork, adds the ordinary training
pictures, each with one of its captions; without it the planted ones are audited alone.
"""

from __future__ import annotations

import io
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from harness import Cases, Options, Row, Study, table

from unmemorize.core.specs import DataSpec
from unmemorize.core.text import normalise, words
from unmemorize.data.repeats import SLOT
from unmemorize.data.words import CAPTIONS
from unmemorize.stages.data import audit_data
from unmemorize.testbed import dataset
from unmemorize.testbed.dataset import Composition, Picture, compose, drawing
from unmemorize.testbed.embedded import PANEL, WORDS, shipped_panel, shipped_words
from unmemorize.testbed.panel import BRANCHES, Panel
from unmemorize.testbed.rows import panel_captions

KINDS = ("across", "within", "slot")
BRANCH = BRANCHES.index("C")
SHARED = ("word", "trigger", "image-only")  # kinds with many captions over one picture
SETS = {"branch C": (shipped_panel, PANEL), "the words' model": (shipped_words, WORDS)}


def training_rows(plan: Panel, folder: Path, artwork: Sequence[Picture]) -> Iterator[tuple[str, str, bytes]]:
    """A plan's training rows as a curator has them: (id, caption, PNG).

    With the artwork every variant of a template is drawn and each ordinary picture comes with one of its captions;
    without it the shipped pictures stand for theirs.
    """
    drawn = {picture.art: picture for picture in artwork}
    for entry in plan.entries:
        for k, how in enumerate(entry.pictures):
            file = folder / "images" / entry.files[k]
            shipped = file if file.exists() else folder / "images" / entry.files[0]
            content = png(drawn[how.art], how) if drawn else shipped.read_bytes()
            for j, caption in enumerate(entry.captions[BRANCH]):
                for n in range(entry.copies[BRANCH]):
                    yield f"{entry.id}-{k}-{j}-{n}", caption, content
    rng = np.random.default_rng(0)
    for number, picture in enumerate(shipped_panel().ordinary(artwork) if artwork else ()):
        captions = panel_captions(picture, number)
        content = png(picture, Composition.random(picture.art, rng))
        yield f"ordinary-{number}", captions[rng.integers(len(captions))], content


def png(picture: Picture, how: Composition) -> bytes:
    buffer = io.BytesIO()
    compose(drawing(picture), how).save(buffer, "PNG")
    return buffer.getvalue()


def audited(name: str, data: Path, rows: Row) -> Row:
    """Run the data audit on training rows; precision and recall of the words it calls triggers."""
    load, pictures = SETS[name]
    plan = load()
    artwork = dataset.pictures(data) if (data / "pictures.parquet").exists() else []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "training.parquet"
        schema = pa.schema([("id", pa.string()), ("caption", pa.string()), ("image", pa.binary())])
        count, captions = 0, set()
        with pq.ParquetWriter(path, schema) as writer:
            rows_of_plan = training_rows(plan, pictures, artwork)
            while batch := list(islice(rows_of_plan, 1000)):
                writer.write_table(pa.table([list(c) for c in zip(*batch, strict=True)], schema=schema))
                count += len(batch)
                captions.update(caption for _, caption, _ in batch)
        summary = audit_data(DataSpec(source=str(path)), Path(folder) / "run")
    found = {kind: [t["word"] for t in summary["triggers"] if t["kind"] == kind] for kind in KINDS}
    return {
        "rows": count,
        "ordinary_pictures": bool(artwork),
        "kinds": {kind: judge(found[kind], planted_triggers(plan, captions, kind)) for kind in KINDS},
        "duplicate_groups": summary["duplicate_groups"],
        "skipped": summary["skipped"],
    }


def planted_triggers(plan: Panel, captions: set[str], kind: str) -> dict[str, set[str]]:
    """What may be called a trigger of a kind, by entry of the plan; entries that have none are left out.

    Words are said three times in captions of ordinary pictures, too: that is one of the forms captions are drawn from.
    """
    if kind == "within":
        said_again = {said[-1] for said in map(str.split, captions) if len(said) > 2 and len(set(said[-3:])) == 1}
        return {word: {word} for word in said_again}
    found: dict[str, set[str]] = {}
    for entry in plan.entries:
        captions_of = entry.captions[BRANCH]
        if entry.kind not in SHARED or not captions_of:
            continue
        if kind == "across":
            found[entry.id] = set.intersection(*(set(grams(caption)) for caption in captions_of))
        else:
            said = Counter(template for caption in captions_of for template in templates(caption))
            found[entry.id] = {template for template, count in said.items() if count >= CAPTIONS}
    return {entry: words for entry, words in found.items() if words}


def judge(found: Sequence[str], planted: dict[str, set[str]]) -> Row:
    """Precision of what was found, and the share of planted entries that it names."""
    right = [w for w in found if any(w in of for of in planted.values())]
    return {
        "found": len(found),
        "precision": len(right) / len(found) if found else None,
        "false": sorted(set(found) - set(right)),
        "entries": len(planted),
        "recall": sum(bool(of & set(found)) for of in planted.values()) / len(planted) if planted else None,
    }


def templates(prompt: str) -> Iterator[str]:
    """The prompt with each of its words left out, if it has three or more."""
    said = words(normalise(prompt))
    for i in range(len(said) if len(said) > 2 else 0):
        yield " ".join([*said[:i], SLOT, *said[i + 1 :]])


def grams(prompt: str) -> Iterator[str]:
    said = words(normalise(prompt))
    yield from (" ".join(said[i : i + n]) for n in (1, 2, 3) for i in range(len(said) - n + 1))


def cases(options: Options) -> Cases:
    """Both training sets."""
    return Cases({"branch": BRANCHES[BRANCH]}, {name: partial(audited, name, Path(options.data)) for name in SETS})


def page(results: Row) -> Iterator[str]:
    """A row a training set and kind of trigger."""
    rows = []
    for name, found in results["settings"].items():
        scope = "planted and ordinary" if found["ordinary_pictures"] else "planted"
        for kind, of in found["kinds"].items():
            precision = "–" if of["precision"] is None else f"{of['precision']:.3f}"
            recall = "–" if of["recall"] is None else f"{of['recall']:.3f}"
            cells = [str(of["found"]), precision, str(of["entries"]), recall]
            rows.append([name, f"{found['rows']:,} ({scope})", kind, *cells])
    yield from table("training set | rows | kind | triggers | of them planted | planted | of them found", rows)


STUDY = Study(
    title="Memory triggers",
    about="The data audit of training rows, which is not told what is planted.",
    page=page,
    measure=cases,
    options={"data": "testbed-data"},
)
