"""Which explainer finds a word that the copy needs? The truth is generated: the prompt without each of its words.

python benchmarks/explanation.py

A prompt is copied if more than half of its pictures are copies of its own picture. Such a copy needs a word if none of
the pictures is a copy, at the same seeds, with the word left out and with a keyword of an ordinary prompt in its place.
What was generated and explained is kept in docs/results/explanation.json and not done again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import torch
from common import REFERENCES, SAMPLER, STEPS, Row, are_copies, kept, match_any, pictures, planted, table, write
from scipy.stats import binomtest
from tqdm import tqdm

from unmemorize.core.methods import Explainer, Subject
from unmemorize.core.model import DiffusionModel
from unmemorize.data.source import Prompt
from unmemorize.explain.gradient import Gradient
from unmemorize.explain.gradient_input import GradientInput
from unmemorize.explain.leave_one_out import LeaveOneOut
from unmemorize.explain.tokens import rank_agreement
from unmemorize.explain.words import MARGIN, SHARE, occurrences, without, words_of
from unmemorize.metrics.ranking import rate_interval
from unmemorize.metrics.similarity import match_targets
from unmemorize.models.load import load

SEEDS = (220, 221, 222, 223)
FIRST = 2  # every prompt is generated at so many seeds, and at the others if one of these pictures is a copy
EXPLAINERS: dict[str, tuple[Explainer, Sequence[int]]] = {
    "gradient, first step": (Gradient(), SEEDS),
    "gradient, all steps": (Gradient(last=STEPS), SEEDS[:FIRST]),
    "gradient × input": (GradientInput(), SEEDS),
    "leaving out": (LeaveOneOut(), SEEDS),
}
CONTROL = "the prompt's first word"  # sees neither model nor picture


def judged(p: Prompt) -> bool:
    """Whether a prompt is of a kind that is copied, and has words to choose from."""
    often = p.kind in ("word", "template", "repeat", "image-only") or (p.kind == "verbatim" and (p.copies or 0) >= 100)
    return often and len(p.text.split()) > 1


def generated(model: DiffusionModel, texts: Sequence[str], seeds: Sequence[int]) -> torch.Tensor:
    """Every text at every seed: all seeds of the first text, then of the second."""
    return pictures(model, [text for text in texts for _ in seeds], list(seeds) * len(texts))


def own_copies(images: torch.Tensor, owners: Sequence[Prompt]) -> list[int]:
    """How many of the pictures generated for each prompt are copies of that prompt's own picture."""
    seeds = len(images) // len(owners)
    targets = []
    for owner in owners:
        targets += [REFERENCES.names.index(f"{owner.cluster}-00.png")] * seeds
    copied = [match.verdict != "none" for match in match_targets(images, REFERENCES[targets], REFERENCES)]
    return np.reshape(copied, (len(owners), seeds)).sum(axis=1).tolist()


def truth(model: DiffusionModel, prompts: Sequence[Prompt], first: Sequence[int]) -> list[Row]:
    """The copied prompts, and of each word how many copies are left without it and with another in its place.

    `first` is how many of each prompt's first pictures are copies.
    """
    again = [p for p, copies in zip(prompts, first, strict=True) if copies]
    rest = own_copies(generated(model, [p.text for p in again], SEEDS[FIRST:]), again)
    total = {p.id: copies for p, copies in zip(prompts, first, strict=True) if copies}
    for p, copies in zip(again, rest, strict=True):
        total[p.id] += copies
    copied = [p for p in again if total[p.id] > SHARE * len(SEEDS)]
    keywords = sorted({p.text.rsplit(", ", 1)[1] for p in planted(lambda p: p.kind == "negative") if ", " in p.text})
    rng = np.random.default_rng(0)
    rows = []
    for p in tqdm(copied, "words"):
        places = words_of(p.text)
        left_out = [without(p.text, occurrences(p.text, place)) for place in places]
        copies_left_out = own_copies(generated(model, left_out, SEEDS), [p] * len(places))
        copies_replaced: list[int | None] = []
        for place, copies in zip(places, copies_left_out, strict=True):
            if copies:  # the copy does not need this word, whatever stands in its place
                copies_replaced.append(None)
            else:
                text = instead(p.text, place, str(rng.choice(keywords)))
                copies_replaced += own_copies(generated(model, [text], SEEDS), [p])
        rows.append(
            {
                "id": p.id,
                "kind": p.kind,
                "cluster": p.cluster,
                "prompt": p.text,
                "words": [p.text[start:end] for start, end in places],
                "copies": total[p.id],
                "copies left out": copies_left_out,
                "copies replaced": copies_replaced,
            }
        )
    return rows


def instead(prompt: str, place: tuple[int, int], word: str) -> str:
    """The prompt with another word wherever the word at `place` is said."""
    for start, end in reversed(occurrences(prompt, place)):
        prompt = prompt[:start] + word + prompt[end:]
    return prompt


def needed(row: Row) -> list[bool]:
    """Which words the copy needs: without them no picture is a copy."""
    most = MARGIN * len(SEEDS)
    pairs = zip(row["copies left out"], row["copies replaced"], strict=True)
    return [left_out < most and replaced is not None and replaced < most for left_out, replaced in pairs]


def families(prompts: Sequence[Prompt], own: Sequence[int], others: Sequence[int]) -> Row:
    """How often captions of word families give a copy of their own picture, and of any training picture."""
    members = [i for i, p in enumerate(prompts) if p.kind == "word"]
    result: Row = {"prompts": len(members), "pictures": len(members) * FIRST}
    for name, copies in (("own picture", own), ("any picture", others)):
        hits = [copies[i] for i in members]
        rate = by_family([prompts[i].cluster for i in members], hits, FIRST)
        result[name] = {"prompts": int(np.count_nonzero(hits)), "copies": sum(hits), "rate": rate}
    return result


def by_family(clusters: Sequence[str | None], hits: Sequence[int], trials: int) -> list[float]:
    """A rate with its interval, over families; `trials` of each prompt."""
    sums: dict[str | None, list[int]] = defaultdict(lambda: [0, 0])
    for cluster, hit in zip(clusters, hits, strict=True):
        sums[cluster][0] += hit
        sums[cluster][1] += trials
    rate = rate_interval([hit for hit, _ in sums.values()], [trial for _, trial in sums.values()])
    return [rate.value, rate.low, rate.high]


def explained(model: DiffusionModel, rows: Sequence[Row]) -> dict[str, Row]:
    """The values of each explainer for the words of each prompt, by explainer and prompt."""
    subject = Subject(model, SAMPLER)
    values: dict[str, Row] = {name: {} for name in EXPLAINERS}
    for row in tqdm(rows, model.name):
        for name, (explainer, seeds) in EXPLAINERS.items():
            explanation = explainer.explain(subject, row["prompt"], seeds=seeds)
            values[name][row["id"]] = {
                "words": list(explanation.significance),
                "special": explanation.special,
                "evaluations": explanation.evaluations,
            }
    return values


def summary(rows: Sequence[Row], values: dict[str, Row], wanted: Callable[[Row], list[bool]]) -> Row:
    """How often each explainer's first word is a wanted one, with intervals over families, and how often by chance."""
    result: Row = {"prompts": len(rows), "families": len({row["cluster"] for row in rows})}
    result["chance"] = float(np.mean([np.mean(wanted(row)) for row in rows]))
    first = {name: [int(np.argmax(of[row["id"]]["words"])) for row in rows] for name, of in values.items()}
    first[CONTROL] = [0] * len(rows)
    for name, places in first.items():
        hits = [int(wanted(row)[place]) for row, place in zip(rows, places, strict=True)]
        result[name] = {"hits": sum(hits), "rate": by_family([row["cluster"] for row in rows], hits, 1)}
    pairs = [[values[name][row["id"]]["words"] for name in ("gradient, first step", "leaving out")] for row in rows]
    agreements = [agreement for a, b in pairs if (agreement := rank_agreement(a, b)) is not None]
    return result | {"agreement": float(np.mean(agreements)) if agreements else None}


def against_twin(rows: Sequence[Row], values: dict[str, dict[str, Row]]) -> Row:
    """Prompts in which an explainer is right on the model and not on the twin, the reverse, and the sign test's p."""
    result = {}
    for name in EXPLAINERS:
        right = {}
        for model, of in values.items():
            right[model] = [needed(row)[int(np.argmax(of[name][row["id"]]["words"]))] for row in rows]
        pairs = list(zip(right["testbed"], right["testbed-twin"], strict=True))
        more, less = pairs.count((True, False)), pairs.count((False, True))
        p_value = binomtest(more, more + less).pvalue if more + less else 1.0
        result[name] = {"model": more, "twin": less, "p_value": float(p_value)}
    return result


def planted_word(row: Row) -> list[bool]:
    """Which word is the one that the captions of a word family share: the last."""
    return [i == len(row["words"]) - 1 for i in range(len(row["words"]))]


def shares(rows: Sequence[Row], values: Row) -> dict[str, float]:
    """Shares of the gradient on words, begin, end and padding tokens: means over prompts."""
    parts = []
    for row in rows:
        of = values[row["id"]]
        parts.append({"words": sum(of["words"])} | of["special"])
    return {key: float(np.mean([part[key] / sum(part.values()) for part in parts])) for key in parts[0]}


def main() -> None:
    numbers = kept("explanation", {"seeds": list(SEEDS), "steps": STEPS})
    if "copied" not in numbers:
        model = load("testbed")
        prompts = planted(judged)
        images = generated(model, [p.text for p in prompts], SEEDS[:FIRST])
        own = own_copies(images, prompts)
        others = np.reshape(are_copies(match_any(images)), (len(prompts), FIRST)).sum(axis=1).tolist()
        numbers["families"] = families(prompts, own, others)
        numbers["copied"] = truth(model, prompts, own)
        write("explanation", numbers, page(numbers))
    copied = numbers["copied"]
    some = [row for row in copied if any(needed(row)) and not all(needed(row))]
    groups = {
        "planted word": ([row for row in copied if row["kind"] == "word" and needed(row)[-1]], planted_word),
        "any word": (some, needed),
    }
    rows = [row for row in copied if any(row in members for members, _ in groups.values())]
    if "values" not in numbers:
        numbers["values"] = {name: explained(load(name), rows) for name in ("testbed", "testbed-twin")}
    numbers["ranks"] = {}
    for name, values in numbers["values"].items():
        for group, (members, wanted) in groups.items():
            numbers["ranks"][f"{name}, {group}"] = summary(members, values, wanted)
    numbers["against twin"] = against_twin(some, numbers["values"])
    numbers["shares"] = shares(rows, numbers["values"]["testbed"]["gradient, first step"])
    write("explanation", numbers, page(numbers))


def page(numbers: Row) -> list[str]:
    """The tables of docs/results.md."""
    of = numbers["families"]
    lines = []
    for name in ("own picture", "any picture"):
        row = of[name]
        lines.append([name, str(row["prompts"]), f"{row['copies']} of {of['pictures']}", interval(row["rate"])])
    head = [f"{of['prompts']} captions of word families: copies of", "prompts with a copy", "pictures", "copy rate"]
    text = table(head, lines)
    if "ranks" not in numbers:
        return text
    copied = numbers["copied"]
    words = sum(len(row["words"]) for row in copied)
    text += ["", f"Copied prompts of two words or more: {len(copied)}, with {words} words, of which the copy needs "]
    text[-1] += f"{sum(sum(needed(row)) for row in copied)}. First by each explainer is a word that the copy needs:"
    lines = [
        [name, str(row["prompts"]), str(row["families"])]
        + [f"{row[explainer]['hits']}: {interval(row[explainer]['rate'])}" for explainer in (*EXPLAINERS, CONTROL)]
        + [f"{row['chance']:.2f}", "–" if row["agreement"] is None else f"{row['agreement']:.2f}"]
        for name, row in numbers["ranks"].items()
    ]
    head = [
        "model, word",
        "prompts",
        "families",
        *EXPLAINERS,
        CONTROL,
        "by chance",
        "rank agreement of gradient and leaving out",
    ]
    shares = ", ".join(f"{name} {share:.0%}" for name, share in numbers["shares"].items())
    signs = []
    for name, row in numbers["against twin"].items():
        signs.append(f"{name} {row['model']} against {row['twin']} (p = {row['p_value']:.2g})")
    paired = f"Any word, right on the model and not on the twin against the reverse, sign test: {'; '.join(signs)}."
    return [*text, "", *table(head, lines), "", paired, "", f"Where the gradient at the first step lies: {shares}."]


def interval(rate: Sequence[float]) -> str:
    """A rate with its interval."""
    return "{:.3f} [{:.3f}, {:.3f}]".format(*rate)


if __name__ == "__main__":
    main()
