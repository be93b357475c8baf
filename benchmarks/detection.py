"""How well the text-conditional magnitude finds what is planted: at the first step and along the way, dose by dose.

    python benchmarks/detection.py [--only TEXT]

Writes docs/results/detection.{json,md} and detection.svg. Seeds are used nowhere else; nothing is tuned.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from itertools import product

import numpy as np
import torch
from common import OUT, SAMPLER, STEPS, often, planted, show, table, write
from matplotlib.figure import Figure
from tqdm import tqdm

from unmemorize.core.methods import Subject
from unmemorize.core.results import Interval
from unmemorize.core.sample import Sampler
from unmemorize.data.source import Prompt
from unmemorize.detect.noise import NoiseGap
from unmemorize.metrics.ranking import auc, cluster_bootstrap, text_scores, tpr_at_fpr
from unmemorize.models.load import load

SEEDS = (200, 201, 202, 203)
MODELS = ("testbed", "testbed-twin")
GROUPS = {"verbatim, 100 copies or more": often, "everything memorable": lambda p: bool(p.memorable)}
KINDS = {"verbatim, 100 copies or more": often} | {
    kind: lambda p, kind=kind: p.kind == kind for kind in ("repeat", "template", "image-only", "word", "caption-only")
}
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


def ranking(scores: np.ndarray, prompts: list[Prompt], positive) -> dict:
    """AUC and TPR at 1% FPR of prompts that `positive` says yes to against negatives."""
    kept = [i for i, p in enumerate(prompts) if positive(p) or p.kind == "negative"]
    labels = np.array([positive(prompts[i]) for i in kept])
    clusters = [prompts[i].cluster for i in kept]
    measured = {
        name: asdict(cluster_bootstrap(statistic, scores[kept], labels, clusters))
        for name, statistic in (("auc", auc), ("tpr", tpr_at_fpr))
    }
    return {"positives": int(labels.sum()), "negatives": int((~labels).sum())} | measured


def control(prompts: list[Prompt], positive) -> dict:
    """The same AUC for a classifier that sees the text alone."""
    kept = [p for p in prompts if positive(p) or p.kind == "negative"]
    labels, clusters = np.array([positive(p) for p in kept]), [p.cluster for p in kept]
    return asdict(cluster_bootstrap(auc, text_scores([p.text for p in kept], labels, clusters), labels, clusters))


def dose(scores: np.ndarray, prompts: list[Prompt]) -> list[dict]:
    """Quartiles of the score by the number of copies, with the copy rate measured by benchmarks/testbed.py."""
    rates = {row["group"]: row["planted"] for row in json.loads((OUT / "testbed.json").read_text(encoding="utf-8"))}
    rows = []
    for copies in sorted({p.copies for p in prompts if p.kind == "verbatim"}):
        chosen = [s for s, p in zip(scores, prompts, strict=True) if p.kind == "verbatim" and p.copies == copies]
        quartiles = [float(q) for q in np.quantile(chosen, [0.25, 0.5, 0.75])]
        name = f"verbatim, {copies} {'copy' if copies == 1 else 'copies'}"
        rows.append({"copies": copies, "score": quartiles, "copy_rate": rates[name]})
    return rows


def figure(rows: list[dict], negatives: np.ndarray, path) -> None:
    """Score and copy rate against the number of copies."""
    chart = Figure(figsize=(7, 3.2), layout="constrained")
    left, right = chart.subplots(1, 2)
    x = [row["copies"] for row in rows]
    low, middle, high = zip(*(row["score"] for row in rows), strict=True)
    left.fill_between(x, low, high, alpha=0.2, linewidth=0)
    left.plot(x, middle, "o-", label="planted, median and quartiles")
    left.axhline(np.median(negatives), color="grey", linestyle="--", label="negatives, median")
    left.set(xscale="log", xlabel="copies in training", ylabel="magnitude at the first step", ylim=(0, None))
    left.legend(frameon=False)
    value, low, high = zip(*(row["copy_rate"] for row in rows), strict=True)
    error = [np.subtract(value, low), np.subtract(high, value)]
    right.errorbar(x, value, yerr=error, fmt="o-", capsize=3)
    right.set(xscale="log", xlabel="copies in training", ylabel="copy rate", ylim=(-0.03, 1.03))
    chart.savefig(path, metadata={"Date": None})


def cell(interval: dict, digits: int = 3) -> str:
    return show(Interval(**interval), digits)


def by_kind(kinds: dict) -> list[str]:
    """One line a kind of planting, and the control whose caption is as frequent and whose picture is not."""
    rows = []
    for name, found in kinds.items():
        planted_model, twin = found["testbed"], found["testbed-twin"]
        areas = [cell(planted_model["auc"]), cell(planted_model["tpr"], 2), cell(twin["auc"])]
        rows.append([name, str(planted_model["positives"]), str(found["clusters"]), *areas])
    return table(["planted", "prompts", "clusters", "AUC", "TPR at 1% FPR", "twin: AUC"], rows)


def page(numbers: dict) -> list[str]:
    """The numbers as a page."""
    rows = []
    for name in MODELS:
        for setting, groups in numbers.get(name, {}).items():
            cells = [f"{cell(found['auc'])} · {cell(found['tpr'], 2)}" for found in groups.values()]
            rows.append([name, setting, *cells])
    rows.append(["–", "text alone (control)", *(cell(area) for area in numbers["text alone"].values())])
    head = ["model", "magnitude at", *(f"{group}: AUC · TPR at 1% FPR" for group in GROUPS)]
    doses = []
    for rung in numbers["dose"]:
        quartiles = " / ".join(f"{q:.2f}" for q in rung["score"])
        doses.append([str(rung["copies"]), quartiles, show(Interval(*rung["copy_rate"]), 2)])
    return [
        *table(head, rows),
        "",
        f"By what is planted, {BY_KIND}. *Everything memorable* is a mixture: 120 of its 168 prompts are of word "
        "families. Caption-only prompts are a control: their captions are in 40 rows each, over twenty pictures, so "
        "that a score that only found frequent captions would find them.",
        "",
        *by_kind(numbers["kinds"]),
        "",
        *table(["copies", "magnitude (quartiles)", "copy rate"], doses),
        "",
        "![Dose and response](results/detection.svg)",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="measure settings whose name contains this; the rest stays")
    only = parser.parse_args().only
    prompts = planted(lambda p: True)
    path = OUT / "detection.json"
    numbers = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    numbers["text alone"] = {group: control(prompts, positive) for group, positive in GROUPS.items()}
    kinds = numbers.setdefault("kinds", {})
    for name, setting in product(MODELS, SETTINGS):
        if only not in f"{name} | {setting}" or (name, setting) == ("testbed-twin", ALONG):
            continue
        scores = SETTINGS[setting](load(name), prompts)
        found = {group: ranking(scores, prompts, positive) for group, positive in GROUPS.items()}
        numbers.setdefault(name, {})[setting] = found
        if setting != BY_KIND:
            continue
        for kind, positive in KINDS.items():
            clusters = len({p.cluster for p in prompts if positive(p)})
            kinds.setdefault(kind, {"clusters": clusters})[name] = ranking(scores, prompts, positive)
        if name == "testbed":
            numbers["dose"] = dose(scores, prompts)
            figure(numbers["dose"], scores[[p.kind == "negative" for p in prompts]], OUT / "detection.svg")
    write("detection", numbers, page(numbers))


if __name__ == "__main__":
    main()
