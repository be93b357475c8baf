"""How well the text-conditional magnitude finds what is planted: at the first step and along the way, dose by dose.

    python benchmarks/detection.py

Writes docs/results/detection.{json,md} and detection.svg. Seeds are used nowhere else; nothing is tuned.
"""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import torch
from common import GUIDANCE, OUT, STEPS, often, planted, table, write
from matplotlib.figure import Figure
from tqdm import tqdm

from unmemorize.core.sample import first_unconditional
from unmemorize.data.source import Prompt
from unmemorize.detect.noise import noise_gap_along, noise_gap_at_start
from unmemorize.metrics.ranking import auc, cluster_bootstrap, text_scores, tpr_at_fpr
from unmemorize.models.load import load

SEEDS = (200, 201, 202, 203)


def first_step(model, prompts: list[Prompt], steps: int) -> np.ndarray:
    """Scores (prompts, seeds) at the first of `steps` sampling steps."""
    empty = first_unconditional(model, seeds=SEEDS, steps=steps)
    return noise_gap_at_start(model, [p.text for p in prompts], empty, seeds=SEEDS, steps=steps).scores.numpy()


def all_steps(model, prompts: list[Prompt]) -> np.ndarray:
    """Scores (prompts, seeds) over a whole sampling path."""
    how = {"seeds": SEEDS, "steps": STEPS, "window": (0, STEPS), "guidance": GUIDANCE}
    parts = [prompts[i : i + 16] for i in range(0, len(prompts), 16)]
    found = [noise_gap_along(model, [p.text for p in part], **how).scores for part in tqdm(parts, "all steps")]
    return torch.cat(found).numpy()


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


def main() -> None:
    prompts = planted(lambda p: True)
    groups = {"verbatim, 100 copies or more": often, "everything memorable": lambda p: bool(p.memorable)}
    numbers: dict = {"text alone": {group: control(prompts, positive) for group, positive in groups.items()}}
    rows = []
    for name in ("testbed", "testbed-twin"):
        model = load(name)
        first, early = first_step(model, prompts, 50), first_step(model, prompts, STEPS)
        settings = {
            "first of 50 steps, 1 seed": first[:, 0],
            "first of 50 steps, 4 seeds": first.mean(1),
            f"first of {STEPS} steps, 4 seeds": early.mean(1),
        }
        if name == "testbed":
            settings[f"all of {STEPS} steps, 4 seeds"] = all_steps(model, prompts).mean(1)
            numbers["dose"] = dose(first.mean(1), prompts)
            ordinary = first.mean(1)[[p.kind == "negative" for p in prompts]]
            figure(numbers["dose"], ordinary, OUT / "detection.svg")
        numbers[name] = {
            s: {group: ranking(v, prompts, positive) for group, positive in groups.items()} for s, v in settings.items()
        }
        for setting, by_group in numbers[name].items():
            cells = [
                f"{r['auc']['value']:.3f} [{r['auc']['low']:.3f}, {r['auc']['high']:.3f}]"
                f" · {r['tpr']['value']:.2f} [{r['tpr']['low']:.2f}, {r['tpr']['high']:.2f}]"
                for r in by_group.values()
            ]
            rows.append([name, setting, *cells])
    alone = [f"{c['value']:.3f} [{c['low']:.3f}, {c['high']:.3f}]" for c in numbers["text alone"].values()]
    rows.append(["–", "text alone (control)", *alone])
    head = ["model", "magnitude at", *(f"{g}: AUC · TPR at 1% FPR" for g in groups)]
    doses = [
        [
            str(d["copies"]),
            " / ".join(f"{q:.2f}" for q in d["score"]),
            "{:.2f} [{:.2f}, {:.2f}]".format(*d["copy_rate"]),
        ]
        for d in numbers["dose"]
    ]
    page = [*table(head, rows), "", *table(["copies", "magnitude (quartiles)", "copy rate"], doses)]
    write("detection", numbers, [*page, "", "![Dose and response](results/detection.svg)"])


if __name__ == "__main__":
    main()
