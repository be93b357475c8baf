"""Two case studies of word-level triggers on the shipped testbed, and whether the data audit finds what was planted.

    python benchmarks/triggers.py [--data testbed-data] [--limit 2] [--audit-only]

A: a word shared by many captions of one picture, put into prompts that were never trained on: copy rate against the
number of captions that share it. B: a word repeated inside the prompt: score and copy rate against how often. Audit:
the training rows of the plan, given to the data audit without being told what is planted. `--data`, a folder with the
testbed's artwork, adds the ordinary training pictures; without it the planted ones and their negatives are audited.
`--limit` takes so many words of each kind. Writes docs/results/triggers.{json,md} and two figures.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.figure import Figure
from tqdm import tqdm

from unmemorize.core.run import atomic, write_json
from unmemorize.core.text import normalise, spans, words
from unmemorize.explain.words import Outcome, again, measure
from unmemorize.jobs.copies import copy_check
from unmemorize.jobs.data import DataSpec, audit_data
from unmemorize.metrics.ranking import rate_interval
from unmemorize.models.load import load
from unmemorize.testbed.dataset import Composition, Picture, compose, drawing, pictures, well_known
from unmemorize.testbed.embedded import IMAGES, shipped_plan
from unmemorize.testbed.plan import Plan, add_keyword
from unmemorize.testbed.rows import caption_forms

OUT = Path("docs/results")
SEEDS = (600, 601)  # used nowhere else
STEPS = 16
CONTEXTS = 3  # prompts that were never trained on, for each word
TIMES = (1, 2, 3, 4, 5, 6)
PLANTED = {"word", "image-only"}  # kinds whose captions share words over one picture


def keyword(prompt: str) -> str:
    return prompt.rsplit(", ", 1)[1]


def shared_words_of(plan: Plan) -> dict[int, list[tuple[str, str]]]:
    """Words by the number of captions of one picture that share them, each with its family.

    0 are words of the negatives, which go with six different pictures and so share none.
    """
    found: dict[int, dict[str, str]] = defaultdict(dict)
    for entry in plan.planted:
        if entry.kind == "word":
            found[len(entry.prompts)][keyword(entry.prompts[0])] = entry.id
        elif entry.kind == "image-only":
            found[len(entry.prompts)][entry.prompts[0]] = entry.id
            found[1][keyword(entry.prompts[1])] = entry.id
        elif entry.kind == "negative" and ", " in entry.prompts[0]:
            found[0][keyword(entry.prompts[0])] = entry.family
    return {n: list(of.items()) for n, of in sorted(found.items())}


def case_a(plan: Plan, limit: int) -> dict[str, list[tuple[str, str]]]:
    """Group name to (text, word): each word after names it was never trained with."""
    rng = np.random.default_rng(0)
    names = [e.prompts[0] for e in plan.planted if e.id.startswith("negative-name")]
    groups = {}
    for count, found in shared_words_of(plan).items():
        groups[str(count)] = [
            (add_keyword(names[i], word), word)
            for word, _ in found[:limit]
            for i in rng.choice(len(names), CONTEXTS, replace=False)
        ]
    groups["no word"] = [(name, name) for name in names[: limit * 2]]
    return groups


def case_b(plan: Plan, limit: int) -> dict[str, list[tuple[str, str, int]]]:
    """Group name to (text, prompt, times): the last word of trained prompts said so often, and of ordinary ones."""
    kinds = {
        "trained with the word three times": [e for e in plan.planted if e.kind == "repeat"],
        "trained with the word once, 100 copies or more": [
            e for e in plan.planted if e.kind == "verbatim" and e.copies >= 100
        ],
        "ordinary prompt": [e for e in plan.planted if e.id.startswith("negative-name")][:20],
    }
    groups = {}
    for name, entries in kinds.items():
        groups[name] = []
        for entry in entries[:limit]:
            said = entry.prompts[0].split()
            base = " ".join(said[:-2]) if entry.kind == "repeat" else entry.prompts[0]
            place = list(spans(base))[-1]
            groups[name] += [(again(base, place, k), base, k) for k in TIMES]
    return groups


def outcomes_of(texts: Sequence[str]) -> dict[str, Outcome]:
    """Score and generate each text once with the shipped model."""
    model = load("testbed")
    copied = copy_check(model, "testbed", "")
    found = {}
    for start in tqdm(range(0, len(texts), 8), desc="texts"):
        part = texts[start : start + 8]
        found |= dict(zip(part, measure(model, part, copied, seeds=SEEDS, steps=STEPS), strict=True))
    return found


def row_of(found: Sequence[tuple[str, Outcome]]) -> dict:
    """Copy rate with its interval over units (words, prompts), and mean magnitude with that of its mean."""
    units = defaultdict(list)
    for unit, outcome in found:
        units[unit].append(outcome)
    rate = rate_interval(
        [sum(o.copies for o in of) for of in units.values()], [sum(o.seeds for o in of) for of in units.values()]
    )
    means = np.array([np.mean([o.magnitude for o in of]) for of in units.values()])
    draws = np.random.default_rng(0).integers(len(means), size=(1000, len(means)))
    low, high = np.quantile(means[draws].mean(1), [0.025, 0.975])
    return {
        "units": len(units),
        "texts": len(found),
        "copy_rate": [rate.value, rate.low, rate.high],
        "magnitude": [float(means.mean()), float(low), float(high)],
    }


def studies(plan: Plan, limit: int) -> dict:
    """Both case studies, each group with its controls."""
    a, b = case_a(plan, limit), case_b(plan, limit)
    texts = list(dict.fromkeys([t for g in a.values() for t, _ in g] + [t for g in b.values() for t, _, _ in g]))
    outcomes = outcomes_of(texts)
    return {
        "a": [{"captions": n} | row_of([(unit, outcomes[t]) for t, unit in found]) for n, found in a.items()],
        "b": [
            {"prompts": name, "times": k} | row_of([(unit, outcomes[t]) for t, unit, n in found if n == k])
            for name, found in b.items()
            for k in TIMES
        ],
    }


def training_rows(plan: Plan, data: Path | None) -> Iterator[tuple[str, str, bytes]]:
    """The plan's training rows as a curator has them: (id, caption, PNG).

    With the artwork every near-duplicate is drawn and each ordinary picture comes with one of its captions; without it
    the shipped pictures stand for theirs.
    """
    drawn = pictures(data) if data else []
    art = {p.art: p for p in drawn}
    for entry in plan.planted:
        for k, how in enumerate(entry.pictures):
            file = IMAGES / entry.file(k)
            shipped = file if file.exists() else IMAGES / entry.file(0)
            content = png(art[how.art], how) if art else shipped.read_bytes()
            for j, prompt in enumerate(entry.prompts):
                yield from ((f"{entry.id}-{k}-{j}-{n}", prompt, content) for n in range(entry.copies))
    used = {how.art for entry in plan.planted for how in entry.pictures}
    taught, rng = well_known(drawn), np.random.default_rng(0)
    for p in drawn:
        if p.art not in used and p.name in taught:
            forms = caption_forms(p)
            yield p.art, forms[rng.integers(len(forms))], png(p, Composition.random(p.art, rng))


def png(picture: Picture, how: Composition) -> bytes:
    buffer = io.BytesIO()
    compose(drawing(picture), how).save(buffer, "PNG")
    return buffer.getvalue()


def audit(plan: Plan, data: Path | None) -> dict:
    """Run the data audit on the training rows; precision and recall of the words it calls triggers."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "training.parquet"
        schema = pa.schema([("id", pa.string()), ("caption", pa.string()), ("image", pa.binary())])
        count = 0
        with pq.ParquetWriter(path, schema) as writer:
            for batch in batched(training_rows(plan, data), 1000):
                writer.write_table(pa.table([list(c) for c in zip(*batch, strict=True)], schema=schema))
                count += len(batch)
        summary = audit_data(DataSpec(str(path)), Path(folder) / "run")
    across = [t["word"] for t in summary["triggers"] if t["kind"] == "across"]
    within = {t["word"] for t in summary["triggers"] if t["kind"] == "within"}
    truth = {e.id: [set(grams(p)) for p in e.prompts] for e in plan.planted if e.kind in PLANTED}
    shared = {id: set.intersection(*sets) for id, sets in truth.items()}
    right = [w for w in across if any(w in of for of in shared.values())]
    repeated = [e for e in plan.planted if e.kind == "repeat" or e.id.startswith("negative-repeat")]
    return {
        "rows": count,
        "ordinary_pictures": data is not None,
        "found": len(across),
        "precision": len(right) / len(across) if across else None,
        "false": sorted(set(across) - set(right)),
        "recall": {
            kind: sum(bool(shared[e.id] & set(across)) for e in plan.planted if e.kind == kind)
            / sum(e.kind == kind for e in plan.planted)
            for kind in sorted(PLANTED)
        },
        "repeated_recall": sum(e.prompts[0].split()[-1] in within for e in repeated) / len(repeated),
        "repeated_found": len(within),
        "duplicate_groups": summary["duplicate_groups"],
        "skipped": summary["skipped"],
    }


def batched(rows: Iterator, size: int) -> Iterator[list]:
    part = []
    for row in rows:
        part.append(row)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part


def grams(prompt: str) -> Iterator[str]:
    said = words(normalise(prompt))
    yield from (" ".join(said[i : i + n]) for n in (1, 2, 3) for i in range(len(said) - n + 1))


def cell(values: Sequence[float]) -> str:
    return "{:.2f} [{:.2f}, {:.2f}]".format(*values)


def markdown(result: dict) -> str:
    lines = []
    if "a" in result:
        lines += [
            "| captions of one picture that share the word | words | prompts | copy rate | magnitude |",
            "|---|---|---|---|---|",
        ]
        for r in result["a"]:
            rate, size = cell(r["copy_rate"]), cell(r["magnitude"])
            lines.append(f"| {r['captions']} | {r['units']} | {r['texts']} | {rate} | {size} |")
        lines += ["", "| prompts | said | prompts | copy rate | magnitude |", "|---|---|---|---|---|"]
        for r in result["b"]:
            rate, size = cell(r["copy_rate"]), cell(r["magnitude"])
            lines.append(f"| {r['prompts']} | {r['times']}× | {r['units']} | {rate} | {size} |")
        lines.append("")
    found = result["audit"]
    scope = "planted and ordinary" if found["ordinary_pictures"] else "planted and negative"
    lines += [
        "| data audit | |",
        "|---|---|",
        f"| training rows ({scope}) | {found['rows']:,} |",
        f"| words found across captions | {found['found']} |",
        f"| precision | {'–' if found['precision'] is None else format(found['precision'], '.3f')} |",
        *(f"| recall, {kind} | {value:.3f} |" for kind, value in found["recall"].items()),
        f"| recall, words repeated within a caption | {found['repeated_recall']:.3f} |",
    ]
    return "\n".join(lines) + "\n"


def figures(result: dict, out: Path) -> None:
    """Copy rate by captions that share the word; score and copy rate by repeats."""
    figure = Figure(figsize=(4.5, 3), layout="constrained")
    axis = figure.subplots()
    points = [r for r in result["a"] if r["captions"].isdigit()]
    x = [int(r["captions"]) for r in points]
    bars(axis, x, [r["copy_rate"] for r in points], "words in new prompts")
    axis.set(xlabel="captions of one picture that share the word", ylabel="copy rate", ylim=(-0.03, 1.03), xticks=x)
    save(figure, out / "triggers-a.svg")
    figure = Figure(figsize=(9, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in dict.fromkeys(r["prompts"] for r in result["b"]):
        rows = [r for r in result["b"] if r["prompts"] == name]
        bars(left, TIMES, [r["magnitude"] for r in rows], name)
        bars(right, TIMES, [r["copy_rate"] for r in rows], name)
    left.set(xlabel="times the word is said", ylabel="noise magnitude", xticks=TIMES)
    right.set(xlabel="times the word is said", ylabel="copy rate", ylim=(-0.03, 1.03), xticks=TIMES)
    left.legend(frameon=False, fontsize=8)
    save(figure, out / "triggers-b.svg")


def bars(axis, x: Sequence[int], values: Sequence[Sequence[float]], label: str) -> None:
    middle, low, high = np.array(values).T
    axis.errorbar(x, middle, yerr=[middle - low, high - middle], marker="o", capsize=3, label=label)


def save(figure: Figure, path: Path) -> None:
    with atomic(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the testbed's artwork, e.g. testbed-data")
    parser.add_argument("--limit", type=int, default=10_000, help="words or prompts of each kind")
    parser.add_argument("--audit-only", action="store_true", help="leave out what needs the model")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    plan = shipped_plan()
    result = {"audit": audit(plan, options.data)}
    if not options.audit_only:
        result |= studies(plan, options.limit)
        figures(result, options.out)
    write_json(options.out / "triggers.json", result)
    with atomic(options.out / "triggers.md") as temporary:
        temporary.write_text(markdown(result), encoding="utf-8")
    print(markdown(result))


if __name__ == "__main__":
    main()
