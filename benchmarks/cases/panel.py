"""What the shipped branches of the panel copy and what the detector sees, by dose.

Every prompt of the plan is generated from by every branch, at seeds used nowhere else. A picture is a copy where it
copies its own entry's training picture. Rates are over entries: prompts and seeds of one entry count as one unit.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial

import numpy as np
import torch
from branches import (
    BATCH,
    EVERY,
    FLOW,
    REPORTING,
    RETRAINED,
    SHIPPED,
    bundle_of,
    forget_retrained,
    letter,
    name_of,
    pairs,
    pictures,
    places_of,
    references,
    subject_of,
)
from common import are_copies, match_closest
from harness import Cases, Options, Row, Study, numbers_of, save_figure, show, table
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from unmemorize.core.run import atomic
from unmemorize.detect.noise import NoiseGap
from unmemorize.metrics.dose import Dose
from unmemorize.metrics.ranking import auc, cluster_bootstrap, rate_interval, text_scores, tpr_at_fpr
from unmemorize.testbed.dose import CURVE
from unmemorize.testbed.embedded import own, shipped_panel
from unmemorize.testbed.panel import BRANCHES, KINDS, Entry

SEEDS = (100, 101)
SCORED = (100, 101, 102, 103)
TRAINED = 4  # captions of a word that are asked, of those it is trained under
ONCE = "trained on once"
SHOWN = 6  # verbatim entries of the figure


def _asked(entry: Entry, branch: str) -> list[str]:
    return list(entry.prompts)


def _trained(entry: Entry, branch: str) -> list[str]:
    return list(entry.captions[BRANCHES.index(letter(branch))][:TRAINED])


# What is asked of the entries of a kind in a branch.
GROUPS: dict[str, tuple[str, Callable[[Entry, str], list[str]]]] = {
    "verbatim": ("verbatim", _asked),
    "word, held-out prompts": ("word", _asked),
    "word, trained prompts": ("word", _trained),
    "word alone": ("word", lambda entry, branch: [entry.word]),
    "repeat, as trained": ("repeat", _trained),
    "template": ("template", _asked),
    "image-only": ("image-only", _asked),
}


def copies(branch: str, group: str, rows: Row) -> Row:
    """Copies of each entry's own picture, and pictures generated, by entry."""
    kind, prompts_of = GROUPS[group]
    entries = [entry for entry in shipped_panel().entries if entry.kind == kind]
    counts: dict[str, list[int]] = {}
    for entry in entries:
        prompts = [prompt for prompt in prompts_of(entry, branch) for _ in SEEDS]
        if not prompts:
            continue
        images = pictures(subject_of(branch), prompts, list(SEEDS) * (len(prompts) // len(SEEDS)))
        copied = are_copies(match_closest(images, [places_of(entry)] * len(images), references()))
        counts[entry.id] = [sum(copied), len(copied)]
    return {"fingerprint": subject_of(branch).model.fingerprint, "counts": counts}


def once(branch: str, rows: Row) -> Row:
    """Copies of ordinary pictures that the branch was trained on as on any other, and pictures generated, by name."""
    subject, controls = subject_of(branch), bundle_of(branch).controls((64, 64))
    prompts = [prompt for prompt in controls.prompts for _ in SEEDS]
    images = pictures(subject, prompts, list(SEEDS) * len(controls))
    places = [[place] for place in range(len(controls)) for _ in SEEDS]
    copied = np.reshape(are_copies(match_closest(images, places, controls)), (len(controls), len(SEEDS)))
    counts = {name: [int(hits), len(SEEDS)] for name, hits in zip(controls.names, copied.sum(axis=1), strict=True)}
    return {"fingerprint": subject.model.fingerprint, "counts": counts}


def repeats(branch: str, rows: Row) -> Row:
    """Copies and pictures of each repeat entry by how often its prompt says its last word."""
    subject = subject_of(branch)
    counts: dict[str, list[list[int]]] = {}
    for entry in shipped_panel().entries:
        if entry.kind != "repeat":
            continue
        prompts = [prompt for prompt in entry.prompts for _ in SEEDS]
        images = pictures(subject, prompts, list(SEEDS) * len(entry.prompts))
        copied = are_copies(match_closest(images, [places_of(entry)] * len(images), references()))
        by_prompt = np.reshape(copied, (len(entry.prompts), len(SEEDS))).sum(axis=1)
        counts[entry.id] = [[int(hits), len(SEEDS)] for hits in by_prompt]
    return {"fingerprint": subject.model.fingerprint, "repeats": counts}


def scores(branch: str, rows: Row) -> Row:
    """The text-conditional magnitude of every prompt that the plan asks, the mean over seeds."""
    subject = subject_of(branch)
    prompts = own(name_of(branch)).prompts
    values = {}
    for start in range(0, len(prompts), BATCH):
        part = prompts[start : start + BATCH]
        cond = subject.model.encode([prompt.text for prompt in part])
        means = NoiseGap().score(subject, cond, seeds=SCORED).value
        values |= {prompt.id: float(value) for prompt, value in zip(part, means, strict=True)}
    return {"fingerprint": subject.model.fingerprint, "scores": values}


def cases(options: Options) -> Cases:
    """Every branch that is shipped, of both families."""
    named: dict[str, Callable[[Row], Row]] = {}
    for branch in EVERY:
        named[f"{branch} | scores"] = partial(scores, branch)
        named[f"{branch} | repeats"] = partial(repeats, branch)
        named[f"{branch} | {ONCE}"] = partial(once, branch)
        for group in GROUPS:
            named[f"{branch} | {group}"] = partial(copies, branch, group)
    return Cases({"seeds": list(SEEDS)}, named, forget_retrained)


def by_dose(row: Row | None, branch: str) -> dict[int, list[list[int]]]:
    """Copies and pictures of each entry, by its dose in a branch."""
    entries = {entry.id: entry for entry in shipped_panel().entries}
    rungs: dict[int, list[list[int]]] = defaultdict(list)
    for key, count in (row or {"counts": {}})["counts"].items():
        rungs[dose(entries[key], branch)].append(count)
    return dict(rungs)


def dose(entry: Entry, branch: str) -> int:
    """The dose of an entry in a branch of either family."""
    return entry.dose(letter(branch))


def rate_of(counts: Sequence[Sequence[int]]) -> list[float]:
    """The copy rate, with its interval over entries."""
    hits, trials = zip(*counts, strict=True)
    return numbers_of(rate_interval(hits, trials))


def page(results: Row) -> Iterator[str]:
    """Copies by dose, and areas of the detector."""
    settings = results["settings"]
    yield (
        f"Seeds {results['seeds']}, 16 steps, guidance 7.5. Held-out prompts are in no caption of a branch. Of each "
        f"word {TRAINED} captions that it was trained under are asked. Settings are chosen on A and B, results are "
        "reported on C and D."
    )
    lines = []
    for group, (kind, _) in GROUPS.items():
        rungs = {branch: by_dose(settings.get(f"{branch} | {group}"), branch) for branch in EVERY}
        for rung in KINDS[kind].doses:
            cells = [show(rate_of(rungs[branch][rung])) if rung in rungs[branch] else "–" for branch in EVERY]
            if set(cells) != {"–"}:
                lines.append([group, str(rung), *cells])
    measured = {branch: settings[key] for branch in EVERY if (key := f"{branch} | {ONCE}") in settings}
    cells = [
        show(rate_of(list(measured[branch]["counts"].values())) if branch in measured else None) for branch in EVERY
    ]
    lines.append(["ordinary pictures", "1", *cells])
    yield from ("", *table(["prompts", "dose", *EVERY], lines))
    for branches in (REPORTING, FLOW):
        measured = [settings[f"{branch} | repeats"] for branch in branches if f"{branch} | repeats" in settings]
        if len(measured) == len(branches):
            yield from ("", *_repeats(branches, measured))
    if f"{RETRAINED[0]} | verbatim" in settings:
        yield from ("", *_twice(settings, RETRAINED[0]))
    lines = list(_areas(settings))
    if lines:
        yield ""
        yield (
            "The magnitude of the text-conditional prediction at the first step, mean of four seeds, of pictures "
            "planted a hundred times or more against those at dose 0. In *the same prompts* every picture was "
            "planted a hundred times in one branch and never in the other, so that text alone cannot tell. Intervals "
            "resample entries."
        )
        yield from ("", *table("branches | memorized | others | AUC | TPR at 1% FPR | text alone", lines))
    yield from ("", "![The same prompts in each branch](results/panel.png)")


def _repeats(branches: Sequence[str], rows: Sequence[Row]) -> Iterator[str]:
    """Copies by how often a caption says its last word in training, and how often the prompt does."""
    times = KINDS["repeat"].doses
    entries = {entry.id: entry for entry in shipped_panel().entries}
    lines = []
    for planted in times:
        cells = []
        for asked in range(len(times)):
            counts = []
            for branch, row in zip(branches, rows, strict=True):
                for key, of in row["repeats"].items():
                    if dose(entries[key], branch) == planted:
                        counts.append(of[asked])
            cells.append(show(rate_of(counts)))
        lines.append([str(planted), *cells])
    yield f"{branches[0]} and {branches[1]}, captions that say their last word k times, a hundred copies:"
    head = ["k trained", *(f"asked with k = {k}" for k in times)]
    yield from ("", *table(head, lines))


def _twice(settings: Row, retrained: str) -> Iterator[str]:
    """The same branch of two trunks: how many pictures are copied, at one seed or more, in both and in one alone."""
    first = letter(retrained)
    rungs, again = (by_dose(settings[f"{branch} | verbatim"], branch) for branch in (first, retrained))
    lines = []
    for rung in KINDS["verbatim"].doses:
        one, other = (np.array(of[rung])[:, 0] > 0 for of in (rungs, again))
        counts = [(one & other).sum(), (one & ~other).sum(), (~one & other).sum(), (~one & ~other).sum()]
        lines.append([str(rung), *(str(count) for count in counts)])
    yield f"The verbatim pictures in {first} and in the same branch of a second trunk, trained from another seed:"
    head = ["dose", "copied in both", f"in {first} alone", f"in {retrained} alone", "in neither"]
    yield from ("", *table(head, lines))
    one, other = (settings[f"{branch} | scores"]["scores"] for branch in (first, retrained))
    correlation = spearmanr(list(one.values()), [other[prompt] for prompt in one]).statistic
    yield ""
    yield f"The scores of the {len(one)} prompts have a rank correlation of {correlation:.2f} between the two."


def _areas(settings: Row) -> Iterator[list[str]]:
    verbatim = [entry for entry in shipped_panel().entries if entry.kind == "verbatim"]
    for branches in (REPORTING, FLOW, RETRAINED):
        measured = [branch for branch in branches if f"{branch} | scores" in settings]
        for branch in measured:
            clear = [entry for entry in verbatim if dose(entry, branch) == 0 or dose(entry, branch) >= 100]
            yield _area(branch, settings, [(entry, branch) for entry in clear])
        if len(measured) > 1:
            rows = [(entry, branch) for entry in pairs() for branch in branches]
            yield _area(f"{branches[0]} and {branches[1]}, the same prompts", settings, rows)
            looked_at = [row for row in rows if row[0].half == "reporting"]
            yield _area("the same, entries of the reporting half alone", settings, looked_at)


def _area(name: str, settings: Row, rows: Sequence[tuple[Entry, str]]) -> list[str]:
    values = np.array([settings[f"{branch} | scores"]["scores"][entry.id] for entry, branch in rows])
    positive = np.array([dose(entry, branch) > 0 for entry, branch in rows])
    clusters = [entry.id for entry, _ in rows]
    area = cluster_bootstrap(auc, values, positive, clusters)
    rate = cluster_bootstrap(tpr_at_fpr, values, positive, clusters)
    texts = text_scores([entry.prompts[0] for entry, _ in rows], positive, clusters)
    control = cluster_bootstrap(auc, texts, positive, clusters)
    counts = [str(int(positive.sum())), str(int((~positive).sum()))]
    return [name, *counts, show(area, ".3f"), show(rate), show(control)]


def curve(settings: Row) -> list[Dose]:
    """How often the U-Net's branches copy a picture of a number of copies; those of dose 0 are of none."""
    rungs: dict[int, list[list[int]]] = defaultdict(list)
    for branch in SHIPPED:
        rungs[1] += settings[f"{branch} | {ONCE}"]["counts"].values()
        for rung, counts in by_dose(settings[f"{branch} | verbatim"], branch).items():
            if rung:
                rungs[rung] += counts
    return [Dose(rung, float(np.divide(*np.sum(rungs[rung], axis=0))), len(rungs[rung])) for rung in sorted(rungs)]


def figures(results: Row) -> None:
    """What else is made of the numbers: the curve that the data audit reads, and a figure."""
    with atomic(CURVE) as temporary:
        temporary.write_text(json.dumps({"points": [asdict(dose) for dose in curve(results["settings"])]}, indent=1))
    draw()


def draw() -> None:
    """Draw planted pictures beside those of every branch, one seed."""
    verbatim = [entry for entry in shipped_panel().entries if entry.kind == "verbatim"]
    chosen = verbatim[:: len(verbatim) // SHOWN][:SHOWN]
    planted = torch.cat([references()[places_of(entry)].images for entry in chosen])
    columns = [planted]
    for branch in EVERY:
        columns.append(pictures(subject_of(branch), [entry.prompts[0] for entry in chosen], [SEEDS[0]] * len(chosen)))
    canvas = Figure(figsize=(1.5 * len(columns), 1.6 * len(chosen)), layout="constrained")
    axes = canvas.subplots(len(chosen), len(columns))
    for row, entry in enumerate(chosen):
        for column, images in enumerate(columns):
            panel = axes[row][column]
            panel.imshow(images[row].permute(1, 2, 0).clamp(0, 1))
            panel.set(xticks=[], yticks=[])
            label = f"{dose(entry, EVERY[column - 1])} copies" if column else "planted"
            panel.set_xlabel(label, fontsize="small")
            if row == 0:
                panel.set_title(EVERY[column - 1] if column else "", fontsize="medium")
        axes[row][0].set_ylabel(entry.prompts[0], fontsize="x-small")
    save_figure(canvas, "panel.png")


STUDY = Study(
    title="The panel",
    about="Branches of one trunk, in which every picture has another dose in each: what they copy, and what the "
    "detector says of prompts that are memorized in one branch and new to another.",
    page=page,
    measure=cases,
    figures=figures,
)
