"""A word as a trigger: copies by the number of captions that share it, and which explainer puts it first.

Prompts are of the words' model, in which words alone are planted, and of branch C of the panel, in which none of them
is. *Held-out* prompts have the word behind or before a name that no caption of any word has.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial

import numpy as np
from branches import pictures
from common import SAMPLER, STEPS, are_copies, match_closest
from harness import Cases, Options, Row, Study, numbers_of, save_figure, show, table
from matplotlib.figure import Figure
from tqdm import tqdm

from unmemorize.core.methods import Explainer, Subject
from unmemorize.data.bundle import Bundle
from unmemorize.explain.gradient import Gradient
from unmemorize.explain.gradient_input import GradientInput
from unmemorize.explain.leave_one_out import LeaveOneOut
from unmemorize.explain.words import words_of
from unmemorize.metrics.ranking import rate_interval
from unmemorize.metrics.similarity import References
from unmemorize.models.load import load
from unmemorize.testbed.embedded import WORDS_BRANCH, own, shipped_words
from unmemorize.testbed.panel import TRIGGERS, Entry

SEEDS = (240, 241, 242, 243)
TRAINED = 4  # captions that are asked of a word
WITH, WITHOUT = "testbed-words", "testbed-c"
DOSES = TRIGGERS["trigger"].doses
EXPLAINERS: dict[str, tuple[Explainer, Sequence[int]]] = {
    "gradient, first step": (Gradient(), SEEDS),
    "gradient, all steps": (Gradient(last=STEPS), SEEDS[:2]),
    "gradient × input": (GradientInput(), SEEDS),
    "leaving out": (LeaveOneOut(), SEEDS),
}
CONTROL = "the prompt's last word"  # sees neither model nor picture
ASKED: dict[str, Callable[[Entry], Sequence[str]]] = {
    "held-out prompts": lambda entry: entry.prompts,
    "their names without the word": lambda entry: [entry.name(prompt) for prompt in entry.prompts],
    "the word alone": lambda entry: [entry.word],
    "trained captions": lambda entry: entry.captions["ABCD".index(WORDS_BRANCH)][:TRAINED],
}


@cache
def subject_of(model: str) -> Subject:
    """A model, drawn from as all models of the testbed are."""
    return Subject(load(model), SAMPLER)


@cache
def references() -> References:
    """The pictures of the words."""
    return Bundle(WITH, {}, own=own(WITH)).own_pictures((64, 64), lambda known: True)


def copied(model: str, asked: str, rows: Row) -> Row:
    """Which pictures of each text are copies of its word's picture, by entry and text."""
    subject = subject_of(model)
    hits: dict[str, dict[str, list[bool]]] = {}
    for entry in tqdm(shipped_words().entries, f"{model}, {asked}"):
        texts = list(ASKED[asked](entry))
        if not texts:
            continue
        place = references().names.index(entry.files[0])
        images = pictures(subject, [text for text in texts for _ in SEEDS], list(SEEDS) * len(texts))
        copies = np.array(are_copies(match_closest(images, [[place]] * len(images), references())))
        hits[entry.id] = dict(zip(texts, copies.reshape(-1, len(SEEDS)).tolist(), strict=True))
    return {"fingerprint": subject.model.fingerprint, "hits": hits}


def prompts_that_copy(rows: Row) -> list[tuple[Entry, str]]:
    """The held-out prompts of which more than half of the pictures are copies."""
    hits = rows[f"{WITH} | held-out prompts"]["hits"]
    chosen = []
    for entry in shipped_words().entries:
        chosen += [(entry, text) for text, copies in hits[entry.id].items() if sum(copies) > len(SEEDS) / 2]
    return chosen


def explained(model: str, rows: Row) -> Row:
    """The value of each word of the prompts that copy, by explainer and prompt."""
    subject = subject_of(model)
    values: dict[str, dict[str, list[float]]] = {name: {} for name in EXPLAINERS}
    for _, text in tqdm(prompts_that_copy(rows), f"{model}, explained"):
        for name, (explainer, seeds) in EXPLAINERS.items():
            values[name][text] = list(explainer.explain(subject, text, seeds=seeds).significance)
    return {"fingerprint": subject.model.fingerprint, "values": values}


def cases(options: Options) -> Cases:
    """Copies of both models, then what explainers say of the prompts that copy."""
    named: dict[str, Callable[[Row], Row]] = {}
    for asked in ASKED:
        named[f"{WITH} | {asked}"] = partial(copied, WITH, asked)
    named[f"{WITHOUT} | held-out prompts"] = partial(copied, WITHOUT, "held-out prompts")
    named[f"{WITH} | explained"] = partial(explained, WITH)
    named[f"{WITHOUT} | explained"] = partial(explained, WITHOUT)
    return Cases({"seeds": list(SEEDS), "steps": STEPS}, named, forget_retrained)


def forget_retrained(results: Row) -> None:
    """Drop all rows where one of the models has been trained anew since they were measured."""
    for key, row in results["settings"].items():
        model, _, _ = key.partition(" | ")
        if row["fingerprint"] != subject_of(model).model.fingerprint:
            results["settings"] = {}
            return


def rate_at(row: Row, dose: int) -> str:
    """The copy rate of the words of a dose, with its interval over words."""
    counts = []
    for entry in shipped_words().entries:
        own_hits = row["hits"].get(entry.id)
        if entry.dose(WORDS_BRANCH) == dose and own_hits:
            pictures_of = np.array(list(own_hits.values()))
            counts.append((int(pictures_of.sum()), pictures_of.size))
    if not counts:
        return "–"
    hits, trials = zip(*counts, strict=True)
    return show(numbers_of(rate_interval(hits, trials)))


def is_first(values: Sequence[float], entry: Entry, text: str) -> bool:
    """Whether the planted word has the largest value."""
    start, end = words_of(text)[int(np.argmax(values))]
    return text[start:end].strip(",") == entry.word  # a comma belongs to the word before it


def firsts(settings: Row, model: str) -> dict[str, list[tuple[Entry, bool]]]:
    """By explainer, whether the planted word comes first in each prompt that copies."""
    results: dict[str, list[tuple[Entry, bool]]] = {}
    for name, by_prompt in settings[f"{model} | explained"]["values"].items():
        results[name] = [(entry, is_first(by_prompt[text], entry, text)) for entry, text in prompts_that_copy(settings)]
    last = []
    for entry, text in prompts_that_copy(settings):
        last.append((entry, text.endswith(entry.word)))
    return results | {CONTROL: last}


def share_of(firsts_of: Sequence[tuple[Entry, bool]]) -> str:
    """A share of prompts, with its interval over words."""
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for entry, hit in firsts_of:
        sums[entry.id][0] += hit
        sums[entry.id][1] += 1
    if not sums:
        return "–"
    hits, trials = zip(*sums.values(), strict=True)
    return show(numbers_of(rate_interval(hits, trials)))


def page(numbers: Row) -> Iterator[str]:
    """Copies by the number of captions, and the explainers' first words."""
    settings = numbers["settings"]
    lines = []
    for key, row in settings.items():
        if "hits" in row:
            lines.append([key.replace(" | ", ": "), *(rate_at(row, dose) for dose in DOSES)])
    yield from table(["copies of the word's picture", *(f"{dose} captions" for dose in DOSES)], lines)
    if f"{WITHOUT} | explained" not in settings:
        return
    asked = prompts_that_copy(settings)
    chance = np.mean([1 / len(words_of(text)) for _, text in asked])
    yield ""
    yield (
        f"{len(asked)} held-out prompts of {len({entry.id for entry, _ in asked})} words copy, more than half of four "
        f"pictures. The planted word is the first by (chance {chance:.2f}):"
    )
    lines = []
    with_word, without = firsts(settings, WITH), firsts(settings, WITHOUT)
    for name, of in with_word.items():
        halves = [share_of([row for row in of if row[0].half == half]) for half in ("choosing", "reporting")]
        lines.append([name, share_of(of), *halves, share_of(without[name])])
    head = f"explainer | {WITH} | words of the choosing half | of the reporting half | the same prompts, {WITHOUT}"
    yield from ("", *table(head, lines), "", "![Copies by the number of captions](results/words.svg)")


def figure(numbers: Row) -> None:
    """The copy rate against the number of captions: a point a word, a line through the means."""
    canvas = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = canvas.subplots()
    for number, (key, row) in enumerate(numbers["settings"].items()):
        if "hits" not in row:
            continue
        points = []
        for entry in shipped_words().entries:
            if row["hits"].get(entry.id):
                points.append((entry.dose(WORDS_BRANCH), np.mean(list(row["hits"][entry.id].values()))))
        doses = sorted({dose for dose, _ in points})
        means = [np.mean([rate for dose, rate in points if dose == rung]) for rung in doses]
        axes.plot(doses, means, color=f"C{number}", label=key.replace(" | ", ": "))
        axes.scatter(*zip(*points, strict=True), color=f"C{number}", s=10, alpha=0.5)
    axes.set(xlabel="captions that share the word", ylabel="copies of its picture", ylim=(-0.03, 1.03))
    canvas.legend(frameon=False, fontsize="x-small", loc="outside right center")
    save_figure(canvas, "words.svg")


STUDY = Study(
    title="Words as triggers, on the words' model",
    about="Twenty-four words, each shared by 0, 20, 40 or 80 captions of one picture; the names in these captions are "
    "those of other words' captions, too, so that the word alone tells the picture. Four seeds, 16 steps, guidance "
    "7.5. Intervals are over words.",
    page=page,
    measure=cases,
    figures=figure,
)
