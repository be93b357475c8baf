"""Does the word that was planted rank first? On word families, whose captions share one word and nothing else.

python benchmarks/explanation.py
"""

from __future__ import annotations

import numpy as np
from common import matches, pictures, planted, table, write
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


def summary(rows: dict[str, list], prompts, kept: list[bool]) -> dict:
    """Shares of the kept prompts, with intervals over families."""
    found: dict = {
        "prompts": sum(kept),
        "chance": float(np.mean([c for c, k in zip(rows["chance"], kept, strict=True) if k])),
    }
    families_kept = sorted({p.cluster for p, k in zip(prompts, kept, strict=True) if k})
    for method in ("gradient", "leave one out"):
        hits, trials = ([0] * len(families_kept) for _ in range(2))
        for p, hit, k in zip(prompts, rows[method], kept, strict=True):
            if k:
                hits[families_kept.index(p.cluster)] += hit
                trials[families_kept.index(p.cluster)] += 1
        interval = rate_interval(hits, trials)
        found[method] = [interval.value, interval.low, interval.high]
    agreements = [a for a, k in zip(rows["agreement"], kept, strict=True) if k and a is not None]
    return found | {"agreement": float(np.mean(agreements))}


def copied(model, prompts) -> list[bool]:
    """Whether either of two pictures of each prompt is a copy."""
    texts, seeds = [p.text for p in prompts for _ in range(2)], list(SEEDS[:2]) * len(prompts)
    found = matches(pictures(model, texts, seeds))[0]
    return [any(found[i : i + 2]) for i in range(0, len(found), 2)]


def main() -> None:
    prompts = planted(lambda p: p.kind == "word")
    numbers = {}
    for name in ("testbed", "testbed-twin"):
        model = load(name)
        rows = measure(model, prompts)
        numbers[name] = summary(rows, prompts, [True] * len(prompts))
        if name == "testbed" and sum(kept := copied(model, prompts)) >= 5:
            numbers["testbed, prompts that are copied"] = summary(rows, prompts, kept)
    lines = [
        [
            name,
            str(row["prompts"]),
            *("{:.2f} [{:.2f}, {:.2f}]".format(*row[m]) for m in ("gradient", "leave one out")),
            f"{row['chance']:.2f}",
            f"{row['agreement']:.2f}",
        ]
        for name, row in numbers.items()
    ]
    head = ["model", "prompts", "planted word first, by gradient", "by leaving out", "by chance", "mean rank agreement"]
    write("explanation", numbers, table(head, lines))


if __name__ == "__main__":
    main()
