"""How often a prompt that anybody can type brings a picture back: words found by gradient.

A search starts from the words nearest to an embedding that the cheap attack found from noise. Pictures are those that
were planted a hundred times in branch C and never in D, as it came and under mitigations; the controls are the reverse.
Fine-tuned models are made by `python benchmarks panel-mitigations`; without them what searches them is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from branches import forget_retrained, places_of, references, subject_of
from cases.panel_attack import GROUPS, PRUNED, SEEDS, entries_of, under
from cases.panel_mitigations import UNLEARNERS, folder
from common import are_copies
from harness import Cases, Options, Row, Study, show, table

from unmemorize.attack.high_noise import HighNoise
from unmemorize.attack.prompt import PromptSearch, nearest_words
from unmemorize.core.choose import evenly
from unmemorize.core.methods import Mitigation, Subject
from unmemorize.core.model import Condition, DiffusionModel
from unmemorize.core.sample import generate
from unmemorize.core.vocabulary import Words
from unmemorize.metrics.ranking import share_interval
from unmemorize.metrics.similarity import match_targets
from unmemorize.stages.mitigations import tuned_model

BRANCH = "C"
SEARCH = PromptSearch()
WORDS, PICTURES = 3, 6
INFERENCE = ("guard", "embedding-noise")


def start_of(model: DiffusionModel, latent: torch.Tensor, seed: int) -> str:
    """The words that a search begins with."""
    like = model.encode([""]).embeds
    noise = Condition(torch.randn(like.shape, generator=torch.Generator().manual_seed(seed)).to(like))
    last = HighNoise().attack(Subject(model), latent, noise, seeds=[seed]).last
    return nearest_words(model, last.embeds[0], WORDS)


def searched(subject: Subject, place: int) -> Row:
    """One picture's prompt, and what it gives at seeds that the search has not seen, beside the caption's own."""
    model, target = subject.model, references()[[place]]
    caption = target.prompts[0]
    with torch.no_grad():
        latent = model.invert(target.images)
    with model.counted() as cost:
        first = start_of(model, latent, seed=1000 + place)
        prompt, losses = SEARCH.search(model, latent, first, seed=1000 + place, words=Words(model))
    row: Row = {"caption": caption, "start": first, "prompt": prompt, "evaluations": cost.forward}
    for name, text in (("copied", prompt), ("own", caption), ("before", first)):
        made = generate(model, model.encode([text] * len(SEEDS)), seeds=SEEDS, sampler=subject.sampler)
        row[name] = are_copies(match_targets(made, target[[0] * len(SEEDS)], references()))
    return row | {"losses": [round(loss, 4) for loss in losses]}


def measured(name: str, group: str, rows: Row) -> Row:
    """The searches of a group's pictures, under what is done to the branch."""
    subject = subject_of(BRANCH)
    entries = entries_of(BRANCH, group)
    fingerprint = subject.model.fingerprint  # of the weights as they came
    with mitigation_of(name).applied(subject) as changed:
        found = [searched(changed, places_of(entries[i])[0]) for i in evenly(len(entries), PICTURES)]
    return {"fingerprint": fingerprint, "found": found}


def mitigation_of(name: str) -> Mitigation:
    """A fine-tuned model's weights, or what `panel-attack` does to a branch."""
    if name in UNLEARNERS:
        return tuned_model(str(folder(BRANCH, name) / "model"), subject_of(BRANCH).model)
    return under(BRANCH, name)


def cases(options: Options) -> Cases:
    """The branch as it came with its controls, and under each mitigation that is at hand."""
    tuned = [name for name in UNLEARNERS if (folder(BRANCH, name) / "model").exists()]
    asked = [("none", group) for group in GROUPS]
    asked += [(name, GROUPS[0]) for name in (*PRUNED, *INFERENCE, *tuned)]
    named = {f"{BRANCH} | {name} | {group}": partial(measured, name, group) for name, group in asked}
    return Cases({"words": WORDS, "pictures": PICTURES, "seeds": list(SEEDS)}, named, forget_retrained)


def rate(hits: Sequence[Sequence[bool]]) -> str:
    """The share of copies with its interval over pictures."""
    return show(share_interval(hits))


def page(results: Row) -> Iterator[str]:
    """Copy rates of what was found, and some of it."""
    yield (
        f"{WORDS} words, {SEARCH.updates} rounds of {SEARCH.tried} swaps, {SEARCH.batch} noisy versions a round. "
        f"Pictures with seeds {list(SEEDS)}, each judged against its own target. A prompt suffices where one of them "
        "is a copy."
    )
    rows, examples = [], []
    for key, row in results["settings"].items():
        branch, name, group = key.split(" | ")
        found = row["found"]
        suffices = f"{sum(any(one['copied']) for one in found)} of {len(found)}"
        rates = [rate([one[moment] for one in found]) for moment in ("copied", "before", "own")]
        spent = sum(one["evaluations"] for one in found) / len(found)
        rows.append([branch, name, group, suffices, *rates, f"{spent:.0f}"])
        examples += [[name, one["caption"], one["prompt"]] for one in found if any(one["copied"])][:3]
    columns = "branch | under | pictures | a prompt suffices | copy rate | of the start | of the caption | evaluations"
    yield from ("", *table(columns, rows), "", "Some of the prompts that suffice:", "")
    yield from table("under | caption | found", examples)


STUDY = Study(
    title="A prompt, not only an embedding",
    about="Words that anybody can type, searched by gradient.",
    page=page,
    measure=cases,
)
