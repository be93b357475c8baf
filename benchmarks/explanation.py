"""Does the word that was planted rank first? On word families, whose captions share one word and nothing else.

python benchmarks/explanation.py
"""

from __future__ import annotations

import numpy as np
from common import planted, table, write
from tqdm import tqdm

from unmemorize.explain.tokens import leave_one_out, rank_agreement, word_significance
from unmemorize.metrics.ranking import rate_interval
from unmemorize.models.load import load

SEEDS = (220, 221, 222, 223)


def families(prompts) -> dict[str, str]:
    """The word that all captions of a family share, by family."""
    shared: dict[str, set[str]] = {}
    for p in prompts:
        words = set(p.text.split())
        shared[p.cluster] = shared.get(p.cluster, words) & words
    return {cluster: next(iter(words)) for cluster, words in shared.items() if len(words) == 1}


def first(words: tuple[str, ...], values, wanted: str) -> bool:
    """Whether the wanted word has the highest value."""
    return words[int(np.argmax(values))] == wanted


def measure(model, prompts) -> dict[str, list]:
    """For every prompt: whether the planted word ranks first by either method, chance, and the methods' agreement."""
    planted_word = families(prompts)
    rows: dict[str, list] = {"gradient": [], "leave one out": [], "chance": [], "agreement": []}
    for p in tqdm(prompts, model.name):
        found = word_significance(model, p.text, seeds=SEEDS)
        lost, _ = leave_one_out(model, p.text, seeds=SEEDS)
        wanted = planted_word[p.cluster]
        rows["gradient"].append(first(found.words, found.significance, wanted))
        rows["leave one out"].append(first(found.words, lost, wanted))
        rows["chance"].append(found.words.count(wanted) / len(found.words))
        rows["agreement"].append(rank_agreement(found.significance, lost))
    return rows


def main() -> None:
    prompts = planted(lambda p: p.kind == "word")
    clusters = sorted({p.cluster for p in prompts})
    numbers, lines = {}, []
    for name in ("testbed", "testbed-twin"):
        rows = measure(load(name), prompts)
        cells = []
        for method in ("gradient", "leave one out"):
            hits = [sum(h for h, p in zip(rows[method], prompts, strict=True) if p.cluster == c) for c in clusters]
            trials = [sum(p.cluster == c for p in prompts) for c in clusters]
            interval = rate_interval(hits, trials)
            numbers[f"{name}, {method}"] = [interval.value, interval.low, interval.high]
            cells.append(f"{interval.value:.2f} [{interval.low:.2f}, {interval.high:.2f}]")
        agreement = float(np.mean([a for a in rows["agreement"] if a is not None]))
        numbers[f"{name}, agreement"], numbers["chance"] = agreement, float(np.mean(rows["chance"]))
        lines.append([name, *cells, f"{numbers['chance']:.2f}", f"{agreement:.2f}"])
    head = ["model", "planted word first, by gradient", "by leaving out", "by chance", "mean rank agreement"]
    write("explanation", numbers, table(head, lines))


if __name__ == "__main__":
    main()
