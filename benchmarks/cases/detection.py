"""How well the text-conditional magnitude finds what is planted: at the first step and along the way, dose by dose.

Seeds are used nowhere else; nothing is tuned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from itertools import product

import numpy as np
import torch
from common import SAMPLER, STEPS, often, planted
from harness import Cases, Options, Row, Study, read, save_figure, show, table
from matplotlib.figure import Figure
from tqdm import tqdm

from unmemorize.core.methods import Subject
from unmemorize.core.sample import Sampler
from unmemorize.data.source import Prompt
from unmemorize.detect.noise import NoiseGap
from unmemorize.metrics.ranking import auc, cluster_bootstrap, text_scores, tpr_at_fpr
from unmemorize.models.load import load

SEEDS = (200, 201, 202, 203)
MODELS = ("testbed-ladder", "testbed-twin")
Positive = Callable[[Prompt], bool]


def _is(kind: str) -> Positive:
    return lambda p: p.kind == kind


GROUPS: dict[str, Positive] = {
    "verbatim, 100 copies or more": often,
    "everything memorable": lambda p: bool(p.memorable),
}
KINDS: dict[str, Positive] = {"verbatim, 100 copies or more": often}
KINDS |= {kind: _is(kind) for kind in ("repeat", "template", "image-only", "word", "caption-only")}
BY_KIND = "first of 50 steps, 4 seeds"
ALONG = f"all of {STEPS} steps, 4 seeds"  # sixty times as dear: on the planted model alone


def first_step(model, prompts: list[Prompt], steps: int) -> np.ndarray:
    """Scores (prompts, seeds) at the first of `steps` sampling steps."""
    cond = model.encode([p.text for p in prompts])
    return NoiseGap().score(Subject(model, Sampler(steps)), cond, seeds=SEEDS).by_seed.numpy()


def all_steps(model, prompts: list[Prompt]) -> np.ndarray:
    """Scores (prompts, seeds) over a whole sampling path."""
    score = NoiseGap(last=STEPS).ready(Subject(model, SAMPLER), seeds=SEEDS)
    parts = [prompts[i : i + 16] for i in range(0, len(prompts), 16)]
    found = [score(model.encode([p.text for p in part])).by_seed for part in tqdm(parts, "all steps")]
    return torch.cat(found).numpy()


SETTINGS = {
    "first of 50 steps, 1 seed": lambda model, prompts: first_step(model, prompts, 50)[:, 0],
    BY_KIND: lambda model, prompts: first_step(model, prompts, 50).mean(1),
    f"first of {STEPS} steps, 4 seeds": lambda model, prompts: first_step(model, prompts, STEPS).mean(1),
    ALONG: lambda model, prompts: all_steps(model, prompts).mean(1),
}


def ranking(scores: np.ndarray, prompts: list[Prompt], positive: Positive) -> Row:
    """AUC and TPR at 1% FPR of prompts that `positive` says yes to against negatives."""
    kept = [i for i, p in enumerate(prompts) if positive(p) or p.kind == "negative"]
    labels = np.array([positive(prompts[i]) for i in kept])
    clusters = [prompts[i].cluster for i in kept]
    measured = {
        name: asdict(cluster_bootstrap(statistic, scores[kept], labels, clusters))
        for name, statistic in (("auc", auc), ("tpr", tpr_at_fpr))
    }
    return {"positives": int(labels.sum()), "negatives": int((~labels).sum())} | measured


def control(prompts: list[Prompt], positive: Positive) -> Row:
    """The same AUC for a classifier that sees the text alone."""
    kept = [p for p in prompts if positive(p) or p.kind == "negative"]
    labels, clusters = np.array([positive(p) for p in kept]), [p.cluster for p in kept]
    return asdict(cluster_bootstrap(auc, text_scores([p.text for p in kept], labels, clusters), labels, clusters))


def dose(scores: np.ndarray, prompts: list[Prompt]) -> Row:
    """Quartiles of the score by the number of copies with the copy rate of the testbed, and the negatives' median."""
    rates = {row["group"]: row["planted"] for row in read("testbed")["groups"]}
    rows = []
    for copies in sorted({p.copies for p in prompts if p.kind == "verbatim"}):
        chosen = [s for s, p in zip(scores, prompts, strict=True) if p.kind == "verbatim" and p.copies == copies]
        quartiles = [float(q) for q in np.quantile(chosen, [0.25, 0.5, 0.75])]
        name = f"verbatim, {copies} {'copy' if copies == 1 else 'copies'}"
        rows.append({"copies": copies, "score": quartiles, "copy_rate": rates[name]})
    negatives = scores[[p.kind == "negative" for p in prompts]]
    return {"dose": rows, "negatives": float(np.median(negatives))}


def measured(name: str, setting: str, rows: Row) -> Row:
    """One setting on one model: the groups, and by kind and dose where that is shown."""
    prompts = planted(lambda p: True)
    scores = SETTINGS[setting](load(name), prompts)
    found: Row = {"groups": {group: ranking(scores, prompts, positive) for group, positive in GROUPS.items()}}
    if setting == BY_KIND:
        found["kinds"] = {
            kind: {"clusters": len({p.cluster for p in prompts if positive(p)})} | ranking(scores, prompts, positive)
            for kind, positive in KINDS.items()
        }
        found |= dose(scores, prompts) if name == "testbed-ladder" else {}
    return found


def cases(options: Options) -> Cases:
    """Every setting on both models, and the control."""
    prompts = planted(lambda p: True)
    named = {"text alone": lambda rows: {group: control(prompts, positive) for group, positive in GROUPS.items()}}
    for name, setting in product(MODELS, SETTINGS):
        if (name, setting) != ("testbed-twin", ALONG):
            named[f"{name} | {setting}"] = partial(measured, name, setting)
    return Cases({"seeds": list(SEEDS)}, named)


def page(numbers: Row) -> Iterator[str]:
    """Areas by setting, by kind and by dose."""
    settings = numbers["settings"]
    rows = []
    for key in (f"{name} | {setting}" for name, setting in product(MODELS, SETTINGS)):
        if key in settings:
            found = settings[key]["groups"].values()
            rows.append([*key.split(" | "), *(f"{show(f['auc'], '.3f')} · {show(f['tpr'])}" for f in found)])
    if "text alone" in settings:
        areas = settings["text alone"].values()
        rows.append(["–", "text alone (control)", *(show(area, ".3f") for area in areas)])
    yield from table(["model", "magnitude at", *(f"{group}: AUC · TPR at 1% FPR" for group in GROUPS)], rows)
    ours, twin = (settings.get(f"{name} | {BY_KIND}") for name in MODELS)
    if not ours or not twin:
        return
    yield ""
    yield (
        f"By what is planted, {BY_KIND}. *Everything memorable* is a mixture: 120 of its 168 prompts are of word "
        "families. Caption-only prompts are a control: their captions are in 40 rows each, over twenty pictures, so "
        "that a score that only found frequent captions would find them."
    )
    rows = []
    for kind, found in ours["kinds"].items():
        areas = [show(found["auc"], ".3f"), show(found["tpr"]), show(twin["kinds"][kind]["auc"], ".3f")]
        rows.append([kind, str(found["positives"]), str(found["clusters"]), *areas])
    yield from ("", *table("planted | prompts | clusters | AUC | TPR at 1% FPR | twin: AUC", rows))
    rows = []
    for rung in ours["dose"]:
        rows.append([str(rung["copies"]), " / ".join(f"{q:.2f}" for q in rung["score"]), show(rung["copy_rate"])])
    yield from ("", *table("copies | magnitude (quartiles) | copy rate", rows))
    yield from ("", "![Dose and response](results/detection.svg)")


def figure(numbers: Row) -> None:
    """Score and copy rate against the number of copies."""
    found = numbers["settings"].get(f"testbed | {BY_KIND}")
    if not found:
        return
    chart = Figure(figsize=(7, 3.2), layout="constrained")
    left, right = chart.subplots(1, 2)
    x = [row["copies"] for row in found["dose"]]
    low, middle, high = zip(*(row["score"] for row in found["dose"]), strict=True)
    left.fill_between(x, low, high, alpha=0.2, linewidth=0)
    left.plot(x, middle, "o-", label="planted, median and quartiles")
    left.axhline(found["negatives"], color="grey", linestyle="--", label="negatives, median")
    left.set(xscale="log", xlabel="copies in training", ylabel="magnitude at the first step", ylim=(0, None))
    left.legend(frameon=False)
    value, low, high = zip(*(row["copy_rate"] for row in found["dose"]), strict=True)
    error = [np.subtract(value, low), np.subtract(high, value)]
    right.errorbar(x, value, yerr=error, fmt="o-", capsize=3)
    right.set(xscale="log", xlabel="copies in training", ylabel="copy rate", ylim=(-0.03, 1.03))
    save_figure(chart, "detection.svg")


STUDY = Study(
    title="Detection",
    about="The text-conditional magnitude (Wen et al. 2024) of planted prompts against the negatives, with the control "
    "that sees the text alone. The twin was trained on one pair of a caption and a picture of each entry of the "
    "plan, once: 361 of 971 planted pictures and 361 of 651 captions. Of the verbatim and repeat prompts it "
    "lacks the duplicates and nothing else, and what the score finds there is not memory; most captions of word "
    "and image-only entries and most pictures of templates and caption-only entries it has never seen.",
    page=page,
    measure=cases,
    figures=figure,
)
