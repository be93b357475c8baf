"""Which explainer finds a word that the copy needs? The truth is generated: the prompt without each of its words.

A prompt is copied if more than half of its pictures are copies of its own picture. Such a copy needs a word if none of
the pictures is a copy, at the same seeds, with the word left out and with a keyword of an ordinary prompt in its place.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from common import SAMPLER, STEPS, are_copies, each_at, match_any, of_kind, often, pictures, planted, references
from harness import Cases, Options, Row, Study, numbers_of, show, table
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
MODELS = ("testbed-ladder", "testbed-twin")
CONTROL = "the prompt's first word"  # sees neither model nor picture


def judged(p: Prompt) -> bool:
    """Whether a prompt is of a kind that is copied, and has words to choose from."""
    copied = p.kind in ("word", "template", "repeat", "image-only") or often(p)
    return copied and len(p.text.split()) > 1


def generated(model: DiffusionModel, texts: Sequence[str], seeds: Sequence[int]) -> torch.Tensor:
    """Every text at every seed: all seeds of the first text, then of the second."""
    return pictures(model, *each_at(texts, seeds))


def own_copies(images: torch.Tensor, owners: Sequence[Prompt]) -> list[int]:
    """How many of the pictures generated for each prompt are copies of that prompt's own picture."""
    seeds = len(images) // len(owners)
    targets = []
    for owner in owners:
        targets += [references().names.index(f"{owner.cluster}-00.png")] * seeds
    copied = are_copies(match_targets(images, references()[targets], references()))
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
    keywords = sorted({p.text.rsplit(", ", 1)[1] for p in of_kind("negative") if ", " in p.text})
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
    return numbers_of(rate_interval([hit for hit, _ in sums.values()], [trial for _, trial in sums.values()]))


def explained(model: str, rows: Row) -> dict[str, Row]:
    """The values of each explainer for the words of each prompt, by explainer and prompt."""
    subject = Subject(load(model), SAMPLER)
    values: dict[str, Row] = {name: {} for name in EXPLAINERS}
    for row in tqdm(chosen(rows["truth"]["copied"]), model):
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
        pairs = list(zip(*(right[name] for name in MODELS), strict=True))
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


def found(rows: Row) -> Row:
    """The copied prompts, and the copies of word families."""
    model, prompts = load("testbed-ladder"), planted(judged)
    images = generated(model, [p.text for p in prompts], SEEDS[:FIRST])
    own = own_copies(images, prompts)
    others = np.reshape(are_copies(match_any(images)), (len(prompts), FIRST)).sum(axis=1).tolist()
    return {"families": families(prompts, own, others), "copied": truth(model, prompts, own)}


def groups(copied: Sequence[Row]) -> dict[str, tuple[list[Row], Callable[[Row], list[bool]]]]:
    """Prompts that are explained, and which of their words an explainer is to put first."""
    some = [row for row in copied if any(needed(row)) and not all(needed(row))]
    families = [row for row in copied if row["kind"] == "word" and needed(row)[-1]]
    return {"planted word": (families, planted_word), "any word": (some, needed)}


def chosen(copied: Sequence[Row]) -> list[Row]:
    """Prompts that are in a group."""
    return [row for row in copied if any(row in members for members, _ in groups(copied).values())]


def ranks(rows: Row) -> Row:
    """What the explanations of both models add up to."""
    copied, values = rows["truth"]["copied"], {name: rows[name] for name in MODELS}
    named = {}
    for name in MODELS:
        for group, (members, wanted) in groups(copied).items():
            named[f"{name}, {group}"] = summary(members, values[name], wanted)
    return {
        "ranks": named,
        "shares": shares(chosen(copied), values["testbed-ladder"]["gradient, first step"]),
        "against twin": against_twin(groups(copied)["any word"][0], values),
    }


def cases(options: Options) -> Cases:
    """The truth, what explainers say of it on both models, and how well that fits."""
    measures: dict[str, Callable[[Row], Row]] = {"truth": found}
    measures |= {name: partial(explained, name) for name in MODELS}
    return Cases({"seeds": list(SEEDS), "steps": STEPS}, measures | {"ranks": ranks})


def page(numbers: Row) -> Iterator[str]:
    """Copies of word families, the explainers' first words, and where the gradient lies."""
    settings = numbers["settings"]
    of, copied = settings["truth"]["families"], settings["truth"]["copied"]
    lines = []
    for name in ("own picture", "any picture"):
        row = of[name]
        lines.append([name, str(row["prompts"]), f"{row['copies']} of {of['pictures']}", show(row["rate"], ".3f")])
    yield from table(
        f"{of['prompts']} captions of word families: copies of | prompts with a copy | pictures | copy rate", lines
    )
    if "ranks" not in settings:
        return
    measured = settings["ranks"]
    words = sum(len(row["words"]) for row in copied)
    yield ""
    yield (
        f"Copied prompts of two words or more: {len(copied)}, with {words} words, of which the copy needs "
        f"{sum(sum(needed(row)) for row in copied)}. First by each explainer is a word that the copy needs:"
    )
    lines = []
    for name, row in measured["ranks"].items():
        first = [
            f"{row[explainer]['hits']}: {show(row[explainer]['rate'], '.3f')}" for explainer in (*EXPLAINERS, CONTROL)
        ]
        agreement = "–" if row["agreement"] is None else f"{row['agreement']:.2f}"
        lines.append([name, str(row["prompts"]), str(row["families"]), *first, f"{row['chance']:.2f}", agreement])
    explainers = " | ".join((*EXPLAINERS, CONTROL))
    head = f"model, word | prompts | families | {explainers} | by chance | rank agreement of gradient and leaving out"
    yield from ("", *table(head, lines), "")
    signs = []
    for name, row in measured["against twin"].items():
        signs.append(f"{name} {row['model']} against {row['twin']} (p = {row['p_value']:.2g})")
    yield f"Any word, right on the model and not on the twin against the reverse, sign test: {'; '.join(signs)}."
    shown = ", ".join(f"{name} {share:.0%}" for name, share in measured["shares"].items())
    yield from ("", f"Where the gradient at the first step lies: {shown}.")


STUDY = Study(
    title="Explanation",
    about="Which words a copy needs, by generating the prompt without each of them, and how often each explainer puts "
    "such a word first. A prompt is copied if more than half of four pictures are copies of its own picture; "
    "the copy needs a word if none of the four is one at the same seeds, with the word left out and with an "
    "ordinary prompt's keyword in its place. Planted word: captions of word families whose copy needs the word "
    "that the family shares. Any word: every copied prompt of two words or more that needs one of its words and "
    "not another. The prompt's first word is a control that sees neither model nor picture; the twin has the "
    "same prompts without the memories. The gradient over all steps has two seeds, the others four. Brackets "
    "are exact 95% intervals over families.",
    page=page,
    measure=cases,
)
