"""The shipped branches of the panel: their models, their pictures, and what is generated from them.

A branch is named by its letter; those of the flow transformer as `flow C` and `flow D`, that of a second trunk as
`retrained C`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from common import SAMPLER
from harness import Row

from unmemorize.core.choose import evenly
from unmemorize.core.methods import Subject
from unmemorize.core.sample import generate
from unmemorize.core.specs import EMBEDDED
from unmemorize.data.bundle import Bundle
from unmemorize.metrics.similarity import References
from unmemorize.models.load import load
from unmemorize.testbed.embedded import own, shipped_panel
from unmemorize.testbed.panel import BRANCHES, HALVES, Entry

BATCH = 32
OFTEN = 100  # copies from which a picture comes back
JUDGED = 24  # ordinary prompts whose pictures tell what a mitigation costs
SHIPPED = [branch for branch in BRANCHES if f"testbed-{branch.lower()}" in EMBEDDED]
REPORTING = [branch for branch in BRANCHES if HALVES[branch] == "reporting"]
FLOW = [f"flow {branch}" for branch in REPORTING]
RETRAINED = ["retrained C"]
EVERY = [*SHIPPED, *FLOW, *RETRAINED]


@cache
def pairs() -> list[Entry]:
    """The pictures that were planted `OFTEN` times in one reporting branch and never in the other."""
    verbatim = [entry for entry in shipped_panel().entries if entry.kind == "verbatim"]
    return [entry for entry in verbatim if {entry.dose(branch) for branch in REPORTING} == {0, OFTEN}]


@cache
def templates() -> list[Entry]:
    """The templates, each of which one reporting branch was trained on and the other not."""
    return [entry for entry in shipped_panel().entries if entry.kind == "template"]


@cache
def references() -> References:
    """The shipped pictures of the panel, whichever branch was trained on them."""
    return bundle_of("A").own_pictures((64, 64), lambda known: True)


def bundle_of(branch: str) -> Bundle:
    """The prompts and pictures that a branch brings."""
    return Bundle(name_of(branch), {}, own=own(name_of(branch)))


@cache
def ordinary() -> tuple[list[str], list[str]]:
    """The ordinary prompts whose pictures tell what a mitigation costs, and all others."""
    texts = [entry.prompts[0] for entry in shipped_panel().entries if entry.kind == "ordinary"]
    judged = set(evenly(len(texts), JUDGED))
    rest = [text for i, text in enumerate(texts) if i not in judged]
    return [texts[i] for i in sorted(judged)], rest


def places_of(entry: Entry) -> list[int]:
    """The places of an entry's pictures among the references."""
    return [place for place, name in enumerate(references().names) if name in entry.files]


@cache
def subject_of(branch: str) -> Subject:
    """A branch, drawn from as all models of the testbed are."""
    return Subject(load(name_of(branch)), SAMPLER)


def other_of(branch: str) -> str:
    """The other reporting branch of the same family."""
    family = FLOW if branch in FLOW else REPORTING
    return next(name for name in family if name != branch)


def letter(branch: str) -> str:
    """The branch of the plan, whichever the family."""
    return branch[-1]


def name_of(branch: str) -> str:
    """The shipped model of a branch."""
    return "testbed-" + branch.lower().replace(" ", "-")


def pictures(subject: Subject, prompts: Sequence[str], seeds: Sequence[int]) -> torch.Tensor:
    """A picture of each prompt at the seed beside it."""
    cond = subject.model.encode(prompts)
    return generate(subject.model, cond, seeds=seeds, sampler=subject.sampler, batch=BATCH).float().cpu()


def forget_retrained(results: Row) -> None:
    """Drop the rows of branches that have been trained anew since they were measured."""
    rows = results["settings"]
    current = {branch: subject_of(branch).model.fingerprint for branch in EVERY}
    kept = {}
    for key, row in rows.items():
        branch, _, _ = key.partition(" | ")
        if row["fingerprint"] == current.get(branch):
            kept[key] = row
    results["settings"] = kept
