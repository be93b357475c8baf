"""How often a prompt that anybody can type brings a picture back: words found by gradient, on the testbed.

Searches start from random words, or from the words nearest to an embedding that the cheap attack found from noise; with
all words, or without those of the picture's own caption.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import product

import torch
from common import GROUPS, SAMPLER, are_copies, attacked_pictures, references
from harness import Cases, Options, Row, Study, show, table
from mitigated import NAMES, at_hand, forget_retrained, mitigated

from unmemorize.attack.extraction import SEEDS
from unmemorize.attack.high_noise import HighNoise
from unmemorize.attack.prompt import PromptSearch, nearest_words
from unmemorize.core.methods import Subject, settings
from unmemorize.core.model import Condition, DiffusionModel
from unmemorize.core.sample import generate
from unmemorize.core.vocabulary import Words
from unmemorize.metrics.ranking import share_interval
from unmemorize.metrics.similarity import References, match_targets
from unmemorize.models.load import load

SEARCH = PromptSearch()
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


def searched(subject: Subject, target: References, start: str, allowed: str, words: int, seeds: list[int]) -> Row:
    """One picture's prompt, and what it gives over seeds that the search has not seen, beside the caption's own."""
    caption = target.captions[0] or ""
    forbidden = [] if allowed == "all words" else caption.replace("-", " ").split()
    seed = 1000 + references().captions.index(caption)
    model = subject.model
    with torch.no_grad():
        latent = model.invert(target.images)
    with model.counted() as cost:
        first = start_of(model, latent, start, words, forbidden, seed)
        prompt, losses = SEARCH.search(model, latent, first, seed=seed, words=Words(model, forbidden))
    row = {"caption": caption, "start": first, "prompt": prompt, "evaluations": cost.forward}
    for name, text in (("copied", prompt), ("own", caption), ("before", first)):
        made = generate(model, model.encode([text] * len(seeds)), seeds=seeds, sampler=subject.sampler)
        row[name] = are_copies(match_targets(made, target[[0] * len(seeds)], references()))
    return row | {"losses": [round(loss, 4) for loss in losses]}


def cases(options: Options) -> Cases:
    """Every model, vocabulary, start and group."""
    model = load("testbed-ladder")
    subject, groups = Subject(model, SAMPLER), attacked_pictures(model, options.pictures)
    seeds = list(range(SEEDS[0], SEEDS[0] + options.seeds))

    def measure(edit: str, allowed: str, start: str, pictures: References) -> list[Row]:
        what, rows = mitigated(subject, edit), []
        for i in range(len(pictures)):
            target = pictures[[i]]
            with what.of(target.captions[0], i).applied(subject) as attacked:
                rows.append(searched(attacked, target, start, allowed, options.words, seeds))
        return rows

    named = {}
    for edit, allowed, start, group in product(filter(at_hand, NAMES), VOCABULARIES, STARTS, GROUPS[:2]):
        asked = (edit, allowed, start, groups[group])
        named[f"{edit} | {group} | {start} | {allowed}"] = lambda rows, asked=asked: measure(*asked)
    asked = {"pictures": options.pictures, "words": options.words, "seeds": seeds, "search": settings(SEARCH)}
    return Cases({"fingerprint": model.fingerprint, "options": asked}, named, forget_retrained)


def page(results: Row) -> Iterator[str]:
    """Copy rates of what was found, and some of it."""
    options = results["options"]
    yield (
        f"{options['words']} words, {SEARCH.updates} rounds of {SEARCH.tried} swaps, {SEARCH.batch} noisy versions a "
        f"round. Pictures with seeds {options['seeds']}, each judged against its own target. A prompt suffices where "
        "one of them is a copy."
    )
    rows, examples = [], []
    for name, found in results["settings"].items():
        rates = [show(share_interval([row[key] for row in found])) for key in ("copied", "before", "own")]
        suffices = f"{sum(any(row['copied']) for row in found)} of {len(found)}"
        spent = sum(row["evaluations"] for row in found) / len(found)
        rows.append([*name.split(" | "), suffices, *rates, f"{spent:.0f}"])
        setting = name.replace(" | ", ", ")
        examples += [[setting, row["caption"], row["prompt"]] for row in found if any(row["copied"])][:3]
    columns = "model | pictures | start | words | a prompt suffices | copy rate | of the start | of the caption"
    yield from ("", *table(f"{columns} | evaluations", rows), "", "Some of the prompts that suffice:", "")
    yield from table("setting | caption | found", examples)


STUDY = Study(
    title="A prompt, not only an embedding",
    about="Words that anybody can type, searched by gradient.",
    page=page,
    measure=cases,
    options={"pictures": 6, "words": 3, "seeds": 2},
)
