"""Two case studies of word-level triggers on the shipped testbed, and whether the data audit finds what was planted.

A: a word shared by many captions of one picture, alone, behind names that were trained without it, and behind names of
other word families, beside the same names without the word and beside words that share no picture. B: a word repeated
inside the prompt: score and copy rate against how often. A copy is one of the word's or the prompt's own picture.
Audit: the training rows of the plan, given to the data audit without being told what is planted. `--data`, a folder
with the testbed's artwork, adds the ordinary training pictures; without it the planted ones and their negatives are
audited. `--limit` takes so many words of each kind; `--audit-only` leaves out what needs the model.
"""

from __future__ import annotations

import io
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from common import SAMPLER, each_at, pictures, references
from harness import Options, Row, Study, numbers_of, save_figure, show, table
from matplotlib.figure import Figure
from tqdm import tqdm

from unmemorize.core.methods import Subject
from unmemorize.core.specs import DataSpec
from unmemorize.core.text import normalise, spans, words
from unmemorize.data.repeats import SLOT
from unmemorize.data.words import CAPTIONS
from unmemorize.detect.noise import NoiseGap
from unmemorize.explain.words import again
from unmemorize.metrics.ranking import rate_interval
from unmemorize.metrics.similarity import match_targets
from unmemorize.models.load import load
from unmemorize.stages.data import audit_data
from unmemorize.testbed import dataset
from unmemorize.testbed.dataset import Composition, Picture, compose, drawing, well_known
from unmemorize.testbed.embedded import IMAGES, shipped_plan
from unmemorize.testbed.plan import Plan, Planted, add_keyword
from unmemorize.testbed.rows import caption_forms

SEEDS = (600, 601)  # used nowhere else
CONTEXTS = 2  # names of either kind that each word is put behind,
POOL = 10  # drawn from so many
TIMES = (1, 3, 6)
KINDS = ("across", "within", "slot")
PLANTED = {"word", "image-only"}  # kinds whose captions share words over one picture


@dataclass(frozen=True)
class Trial:
    """A text in a setting: what it is about (`unit`, a word's family or an entry) and the pictures it may copy."""

    group: str
    setting: str
    unit: str
    text: str
    own: tuple[str, ...]


@dataclass(frozen=True)
class Word:
    """A word that six captions share, of one picture (`planted`) or of six, and those pictures."""

    word: str
    planted: bool
    family: str
    prompts: tuple[str, ...]
    own: tuple[str, ...]


def keyword(prompt: str) -> str:
    return prompt.rsplit(", ", 1)[1]


def name_of(prompt: str) -> str:
    return prompt.rsplit(", ", 1)[0]


def words_of(plan: Plan, limit: int) -> list[Word]:
    """The keywords of the word families, and those of the negatives."""
    families: dict[str, list[Planted]] = defaultdict(list)
    for entry in plan.planted:
        if entry.kind == "word" or (entry.kind == "negative" and ", " in entry.prompts[0]):
            families[entry.family].append(entry)
    found = []
    for family, entries in families.items():
        prompts = tuple(p for e in entries for p in e.prompts)
        own = tuple(entry.files[0] for entry in entries)
        found.append(Word(keyword(prompts[0]), entries[0].kind == "word", family, prompts, own))
    return [w for kind in (True, False) for w in [v for v in found if v.planted == kind][:limit]]


def case_a(plan: Plan, limit: int) -> list[Trial]:
    """Each word alone and behind names it was never trained with; those names without it; planted ones as trained.

    All of a word's trials are judged by the pictures of its captions, those without the word too: its control.
    """
    rng = np.random.default_rng(0)
    ordinary = [e.prompts[0] for e in plan.planted if e.id.startswith("negative-name")]
    ordinary = [ordinary[i] for i in rng.choice(len(ordinary), POOL, replace=False)]
    family_names = [(e.id, name_of(p)) for e in plan.planted if e.kind == "word" for p in e.prompts]
    family_names = [family_names[i] for i in rng.choice(len(family_names), POOL, replace=False)]
    trials = []
    for word in words_of(plan, limit):
        others = [name for family, name in family_names if family != word.family]
        contexts = {
            "behind ordinary names": [ordinary[i] for i in rng.choice(POOL, CONTEXTS, replace=False)],
            "behind names of other families": [others[i] for i in rng.choice(len(others), CONTEXTS, replace=False)],
        }
        texts = [("as trained", p) for p in word.prompts] if word.planted else []
        texts.append(("alone", word.word))
        for setting, names in contexts.items():
            texts += [(setting, add_keyword(name, word.word)) for name in names]
        texts += [("those names without it", name) for names in contexts.values() for name in names]
        group = "one picture" if word.planted else "six pictures (control)"
        trials += [Trial(group, setting, word.family, text, word.own) for setting, text in texts]
    return trials


def case_b(plan: Plan, limit: int) -> list[Trial]:
    """The last word of trained prompts said so often, and of ordinary ones; judged by the prompt's own picture."""
    kinds = {
        "trained with the word three times": [e for e in plan.planted if e.kind == "repeat"],
        "trained with the word once, 100 copies or more": [
            e for e in plan.planted if e.kind == "verbatim" and e.copies >= 100
        ],
        "ordinary prompt": [e for e in plan.planted if e.id.startswith("negative-name")][:20],
    }
    trials = []
    for name, entries in kinds.items():
        for entry in entries[:limit]:
            said = entry.prompts[0].split()
            base = " ".join(said[:-2]) if entry.kind == "repeat" else entry.prompts[0]
            place = list(spans(base))[-1]
            own = (entry.files[0],)
            trials += [Trial(name, f"{k}×", entry.id, again(base, place, k), own) for k in TIMES]
    return trials


@dataclass(frozen=True)
class Generated:
    """What a text gave: the mean magnitude of the first step, and a picture a seed, (seeds, 3, h, w)."""

    magnitude: float
    images: torch.Tensor

    def copies(self, own: Sequence[str]) -> int:
        """How many of the pictures are copies of one of its own."""
        copied = torch.zeros(len(self.images), dtype=torch.bool)
        for file in own:
            targets = references()[[references().names.index(file)] * len(self.images)]
            matches = match_targets(self.images, targets, references())
            copied |= torch.tensor([m.verdict != "none" for m in matches])
        return int(copied.sum())


def generate_all(texts: Sequence[str]) -> dict[str, Generated]:
    """Score and generate each text once with the shipped model."""
    model = load("testbed-ladder")
    score, found = NoiseGap().ready(Subject(model, SAMPLER), seeds=SEEDS), {}
    for start in tqdm(range(0, len(texts), 8), desc="texts"):
        part = texts[start : start + 8]
        magnitudes = score(model.encode(part)).value
        images = pictures(model, *each_at(part, SEEDS)).split(len(SEEDS))
        for text, magnitude, of in zip(part, magnitudes.tolist(), images, strict=True):
            found[text] = Generated(magnitude, of)
    return found


def row_of(trials: Sequence[Trial], generated: dict[str, Generated]) -> Row:
    """Copy rate with its interval over units (words, prompts), and mean magnitude with that of its mean."""
    units: dict[str, list[Trial]] = defaultdict(list)
    for trial in trials:
        units[trial.unit].append(trial)
    hits = {unit: sum(generated[t.text].copies(t.own) for t in of) for unit, of in units.items()}
    rate = rate_interval(list(hits.values()), [len(of) * len(SEEDS) for of in units.values()])
    means = np.array([np.mean([generated[t.text].magnitude for t in of]) for of in units.values()])
    draws = np.random.default_rng(0).integers(len(means), size=(1000, len(means)))
    low, high = np.quantile(means[draws].mean(1), [0.025, 0.975])
    return {
        "group": trials[0].group,
        "setting": trials[0].setting,
        "units": len(units),
        "texts": len(trials),
        "copy_rate": numbers_of(rate),
        "units_with_a_copy": sorted(unit for unit, hit in hits.items() if hit),
        "magnitude": [float(means.mean()), float(low), float(high)],
    }


def studies(plan: Plan, limit: int) -> Row:
    """Both case studies, each group with its controls."""
    cases = {"a": case_a(plan, limit), "b": case_b(plan, limit)}
    generated = generate_all(list(dict.fromkeys(t.text for trials in cases.values() for t in trials)))
    result = {}
    for name, trials in cases.items():
        rows: dict[tuple[str, str], list[Trial]] = defaultdict(list)
        for trial in trials:
            rows[trial.group, trial.setting].append(trial)
        result[name] = [row_of(of, generated) for of in rows.values()]
    word = {w.family: w.word for w in words_of(plan, limit)}
    result["alone"] = {
        word[t.unit]: [t.group, generated[t.text].copies(t.own)] for t in cases["a"] if t.setting == "alone"
    }
    return result


def training_rows(plan: Plan, data: Path | None) -> Iterator[tuple[str, str, bytes]]:
    """The plan's training rows as a curator has them: (id, caption, PNG).

    With the artwork every near-duplicate is drawn and each ordinary picture comes with one of its captions; without it
    the shipped pictures stand for theirs.
    """
    drawn = dataset.pictures(data) if data else []
    art = {p.art: p for p in drawn}
    for entry in plan.planted:
        for k, how in enumerate(entry.pictures):
            file = IMAGES / entry.files[k]
            shipped = file if file.exists() else IMAGES / entry.files[0]
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


def audit(plan: Plan, data: Path | None) -> Row:
    """Run the data audit on the training rows; precision and recall of the words it calls triggers."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "training.parquet"
        schema = pa.schema([("id", pa.string()), ("caption", pa.string()), ("image", pa.binary())])
        count, captions = 0, set()
        with pq.ParquetWriter(path, schema) as writer:
            for batch in batched(training_rows(plan, data), 1000):
                writer.write_table(pa.table([list(c) for c in zip(*batch, strict=True)], schema=schema))
                count += len(batch)
                captions.update(caption for _, caption, _ in batch)
        summary = audit_data(DataSpec(source=str(path)), Path(folder) / "run")
    found = {kind: [t["word"] for t in summary["triggers"] if t["kind"] == kind] for kind in KINDS}
    return {
        "rows": count,
        "ordinary_pictures": data is not None,
        "kinds": {kind: judge(found[kind], planted_triggers(plan, captions, kind)) for kind in KINDS},
        "duplicate_groups": summary["duplicate_groups"],
        "skipped": summary["skipped"],
    }


def planted_triggers(plan: Plan, captions: set[str], kind: str) -> dict[str, set[str]]:
    """What may be called a trigger of a kind, by entry of the plan; entries that have none are left out.

    Words are said three times in captions of ordinary pictures, too: that is one of the forms captions are drawn from.
    """
    if kind == "within":
        said_again = {said[-1] for said in map(str.split, captions) if len(said) > 2 and len(set(said[-3:])) == 1}
        return {word: {word} for word in said_again}
    found: dict[str, set[str]] = {}
    for entry in plan.planted:
        if kind == "across" and entry.kind in PLANTED:
            found[entry.id] = set.intersection(*(set(grams(p)) for p in entry.prompts))
        elif kind == "slot" and entry.kind in PLANTED:
            said = Counter(template for p in entry.prompts for template in templates(p))
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
        "recall": sum(bool(of & set(found)) for of in planted.values()) / len(planted),
    }


def templates(prompt: str) -> Iterator[str]:
    """The prompt with each of its words left out, if it has three or more."""
    said = words(normalise(prompt))
    for i in range(len(said) if len(said) > 2 else 0):
        yield " ".join([*said[:i], SLOT, *said[i + 1 :]])


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


def measure(options: Options) -> Row:
    """The audit, and the studies where they are asked for."""
    plan = shipped_plan()
    data = Path(options.data)
    result = {"audit": audit(plan, data if (data / "pictures.parquet").exists() else None)}
    return result if options.audit_only else result | studies(plan, options.limit)


def page(result: Row) -> Iterator[str]:
    """Both studies and the audit."""
    if "a" in result:
        rows = []
        for r in result["a"]:
            copies = [show(r["copy_rate"]), str(len(r["units_with_a_copy"])), show(r["magnitude"])]
            rows.append([r["group"], r["setting"], str(r["units"]), str(r["texts"]), *copies])
        head = "six captions that share the word are of | prompts | words | texts | copies of the word's own pictures"
        yield from table(f"{head} | words with a copy | magnitude", rows)
        both = [word for word, (_, copies) in result["alone"].items() if copies == len(SEEDS)]
        yield from ("", f"Alone, at every seed: {', '.join(both) or 'no word'}.", "")
        rows = []
        for r in result["b"]:
            rows.append([r["group"], r["setting"], str(r["units"]), show(r["copy_rate"]), show(r["magnitude"])])
        yield from (*table("prompts | said | prompts | copy rate | magnitude", rows), "")
    found = result["audit"]
    scope = "planted and ordinary" if found["ordinary_pictures"] else "planted and negative"
    yield from (f"The data audit of {found['rows']:,} training rows ({scope}):", "")
    rows = []
    for kind, of in found["kinds"].items():
        precision = "–" if of["precision"] is None else f"{of['precision']:.3f}"
        rows.append([kind, str(of["found"]), precision, str(of["entries"]), f"{of['recall']:.3f}"])
    yield from table("kind | triggers | of them planted | planted | of them found", rows)


def figures(result: Row) -> None:
    """Copy rate of words by setting; score and copy rate by repeats."""
    if "a" not in result:
        return
    figure = Figure(figsize=(7, 3), layout="constrained")
    axis = figure.subplots()
    settings = list(dict.fromkeys(r["setting"] for r in result["a"]))
    for k, group in enumerate(dict.fromkeys(r["group"] for r in result["a"])):
        rows = [r for r in result["a"] if r["group"] == group]
        x = [settings.index(r["setting"]) + 0.15 * (k - 1) for r in rows]
        bars(axis, x, [r["copy_rate"] for r in rows], f"words of {group}", line="none")
    axis.set(ylabel="copy rate", ylim=(-0.03, 1.03), xticks=range(len(settings)))
    axis.set_xticklabels([s.replace(" names", "\nnames") for s in settings], fontsize=8)
    axis.legend(frameon=False, fontsize=8)
    save_figure(figure, "triggers-a.svg")
    figure = Figure(figsize=(9, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in dict.fromkeys(r["group"] for r in result["b"]):
        rows = [r for r in result["b"] if r["group"] == name]
        bars(left, TIMES, [r["magnitude"] for r in rows], name)
        bars(right, TIMES, [r["copy_rate"] for r in rows], name)
    left.set(xlabel="times the word is said", ylabel="noise magnitude", xticks=TIMES)
    right.set(xlabel="times the word is said", ylabel="copy rate", ylim=(-0.03, 1.03), xticks=TIMES)
    left.legend(frameon=False, fontsize=8)
    save_figure(figure, "triggers-b.svg")


def bars(axis, x: Sequence[float], values: Sequence[Sequence[float]], label: str, line: str = "-") -> None:
    middle, low, high = np.array(values).T
    axis.errorbar(x, middle, yerr=[middle - low, high - middle], marker="o", capsize=3, label=label, linestyle=line)


STUDY = Study(
    title="Memory triggers",
    about="The data audit of the testbed's own training rows, which is not told what is planted.",
    page=page,
    measure=measure,
    options={"data": "testbed-data", "limit": 10_000, "audit-only": False},
    figures=figures,
)
