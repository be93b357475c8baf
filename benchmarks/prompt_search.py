"""How often a prompt that anybody can type brings a picture back: words found by gradient, on the testbed.

    python benchmarks/prompt_search.py [--pictures 6] [--words 3] [--seeds 2] [--only TEXT]

Writes docs/results/prompt-search.{json,md}. Searches start from random words, or from the words nearest to an embedding
that the cheap attack found from noise; with all words, or without those of the picture's own caption. A setting that is
in the JSON already, for the same model and options, is not measured again.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from itertools import product

import torch
from common import REFERENCES, SAMPLER, kept, often, planted, show, table, write
from erase import SPECS
from mitigated import NEMO, PRUNED, SAMPLED, at_hand, forget_retrained, mitigated
from stronger import FIRST_SEED, GROUPS, subjects

from unmemorize.attack.high_noise import HighNoise
from unmemorize.attack.prompt import PromptSearch, nearest_words
from unmemorize.core.methods import Subject, settings
from unmemorize.core.model import Condition, DiffusionModel
from unmemorize.core.sample import generate
from unmemorize.core.vocabulary import Words
from unmemorize.metrics.ranking import share_interval
from unmemorize.metrics.similarity import PIXELS, References, match_targets
from unmemorize.models.load import load

SEARCH = PromptSearch()
MODELS = ("none", *SAMPLED, *reversed(PRUNED), *NEMO, *SPECS)
STARTS, VOCABULARIES = ("random words", "nearest words"), ("all words", "not the caption's")


def start_of(
    model: DiffusionModel, latent: torch.Tensor, start: str, words: int, forbidden: list[str], seed: int
) -> str:
    """The words a search begins with."""
    if start == "random words":
        return " ".join(random.Random(seed).sample(Words(model, forbidden).words, words))
    like = model.encode([""]).embeds
    noise = Condition(torch.randn(like.shape, generator=torch.Generator().manual_seed(seed)).to(like))
    last = HighNoise().attack(Subject(model), latent, noise, seeds=[seed]).last
    return nearest_words(model, last.embeds[0], words, forbidden=forbidden)


def searched(subject: Subject, target: References, start: str, allowed: str, words: int, seeds: list[int]) -> dict:
    """One picture's prompt, and what it gives over seeds that the search has not seen, beside the caption's own."""
    caption = target.captions[0] or ""
    forbidden = [] if allowed == "all words" else caption.replace("-", " ").split()
    seed = 1000 + REFERENCES.captions.index(caption)
    model = subject.model
    with torch.no_grad():
        latent = model.invert(target.images)
    with model.counted() as cost:
        first = start_of(model, latent, start, words, forbidden, seed)
        prompt, losses = SEARCH.search(model, latent, first, seed=seed, words=Words(model, forbidden))
    row = {"caption": caption, "start": first, "prompt": prompt, "evaluations": cost.forward}
    for name, text in (("copied", prompt), ("own", caption), ("before", first)):
        made = generate(model, model.encode([text] * len(seeds)), seeds=seeds, sampler=subject.sampler)
        found = match_targets(made, target[[0] * len(seeds)], REFERENCES)
        row[name] = [PIXELS(match.value) for match in found]
    return row | {"losses": [round(loss, 4) for loss in losses]}


def page(results: dict) -> Iterator[str]:
    options = results["options"]
    yield (
        f"{options['words']} words, {SEARCH.updates} rounds of {SEARCH.tried} swaps, {SEARCH.batch} noisy versions a "
        f"round. Pictures with seeds {options['seeds']}, each judged against its own target. A prompt suffices where "
        "one of them is a copy."
    )
    rows, examples = [], []
    for name, found in results["settings"].items():
        rate, own, before = (share_interval([row[key] for row in found]) for key in ("copied", "own", "before"))
        suffices = f"{sum(any(row['copied']) for row in found)} of {len(found)}"
        spent = sum(row["evaluations"] for row in found) / len(found)
        rows.append([*name.split(" | "), suffices, *(show(r, 2) for r in (rate, before, own)), f"{spent:.0f}"])
        examples += [[name, row["caption"], row["prompt"]] for row in found if any(row["copied"])][:3]
    columns = "model | pictures | start | words | a prompt suffices | copy rate | of the start | of the caption"
    yield from ("", *table([*columns.split(" | "), "evaluations"], rows), "", "Some of the prompts that suffice:", "")
    yield from table(["setting", "caption", "found"], [[c.replace(" | ", ", ") for c in cells] for cells in examples])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=6, help="of each group")
    parser.add_argument("--words", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", default="", help="measure settings whose name contains this")
    options = parser.parse_args()
    model, prompts = load("testbed"), [p.text for p in planted(often)]
    seeds = list(range(FIRST_SEED, FIRST_SEED + options.seeds))
    asked = {"pictures": options.pictures, "words": options.words, "seeds": seeds, "search": settings(SEARCH)}
    results = kept("prompt-search", {"fingerprint": model.fingerprint, "options": asked})
    forget_retrained(results)
    subject, groups = Subject(model, SAMPLER), subjects(model, options.pictures)
    for edit, allowed, start, group in product(MODELS, VOCABULARIES, STARTS, GROUPS[:2]):
        name = " | ".join((edit, group, start, allowed))
        if name in results["settings"] or options.only not in name or not at_hand(edit):
            continue
        what, rows = mitigated(subject, edit, prompts), []
        for i in range(len(groups[group])):
            target = groups[group][[i]]
            with what.of(target.captions[0], i).applied(subject) as attacked:
                rows.append(searched(attacked, target, start, allowed, options.words, seeds))
        results["settings"][name] = rows
        write("prompt-search", results, list(page(results)))


if __name__ == "__main__":
    main()
