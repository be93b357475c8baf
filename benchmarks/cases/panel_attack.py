"""DoRI from the own prompt on the panel: pruned, and under every mitigation at inference, which the search knows.

The search runs under the same pruning or mitigation as the pictures that are judged. Memorized are pictures that were
planted a hundred times in the branch and never in the other one; the controls are the reverse. Mitigations are in the
settings that were chosen on A (`published-mitigations`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from branches import REPORTING, forget_retrained, ordinary, other_of, places_of, references, subject_of
from cases.panel_pruning import memorized
from cases.published_mitigations import METHODS, chosen, known
from harness import Cases, Options, Row, Study, numbers_of, read, show, table

from unmemorize.attack.dori import Dori
from unmemorize.attack.extraction import Init, Trial, extraction
from unmemorize.core.methods import Localizer, Mitigation, Subject, parse
from unmemorize.metrics.ranking import rate_interval
from unmemorize.metrics.similarity import match_targets
from unmemorize.mitigate.edit import Edit
from unmemorize.testbed.panel import Entry

PICTURES = 12  # of either group
SEEDS = (700, 701)
POSITIONS = (1, 2, 4, 8, 0)  # that are searched from a random start; 0: all
PRUNED = {"Wanda, 10%": "wanda:sparsity=0.1", "Wanda, 40%": "wanda:sparsity=0.4"}
BRANCHES = ("C", "flow C")
OF_TEXTS = ("random-words", "random-numbers", "repeated-words")  # what an embedding without a text does not have
GROUPS = ("memorized", "never trained on")


def entries_of(branch: str, group: str) -> list[Entry]:
    """The pictures of a group: those of a branch, or those of the other branch alone."""
    return memorized(branch if group == GROUPS[0] else other_of(branch))[:PICTURES]


def under(branch: str, name: str) -> Mitigation:
    """What is done to a branch: nothing, one edit for all memorized prompts, or a fitted mitigation."""
    subject = subject_of(branch)
    encode = subject.model.encode
    _, others = ordinary()
    if name == "none":
        return Edit({}, {}, "")
    if name in PRUNED:
        localizer: Localizer = parse("localizer", PRUNED[name])
        texts = [entry.prompts[0] for entry in memorized(branch)]
        found = localizer.find(subject, encode(texts), ordinary=encode(others))
        return Edit.of(found, subject.model.fingerprint)
    setting = chosen(read("published-mitigations")["settings"], METHODS[name])
    mitigation: Mitigation = parse("mitigation", setting)
    return mitigation.fitted(subject, ordinary=encode(others), pictures=known(), seeds=range(len(others)))


def attacked(branch: str, name: str, rows: Row) -> Row:
    """`searched` from the own prompt, under what is done to the branch."""
    fingerprint = subject_of(branch).model.fingerprint  # of the weights as they came
    with under(branch, name).applied(subject_of(branch)) as subject:
        return searched(branch, subject, Dori(), "prompt") | {"fingerprint": fingerprint}


def narrowly(branch: str, positions: int, rows: Row) -> Row:
    """`searched` from a random start at so many token positions."""
    subject = subject_of(branch)
    return searched(branch, subject, Dori(tokens=positions), "random") | {"fingerprint": subject.model.fingerprint}


def searched(branch: str, subject: Subject, attack: Dori, init: Init) -> Row:
    """Copies of each picture among so many seeds, before the search and after it."""
    judge = partial(match_targets, references=references())
    row: Row = {}
    trial = Trial((attack.updates,), init, seeds=SEEDS)
    for group in GROUPS:
        places = [places_of(entry)[0] for entry in entries_of(branch, group)]
        found, _ = extraction(subject, references()[places], attack, judge, trial)
        copied = found.copied[:, 0].sum(axis=-1)
        row[group] = {"before": copied[:, 0].tolist(), "after": copied[:, -1].tolist()}
    return row


def cases(options: Options) -> Cases:
    """The model as it came, pruned, and for the U-Net under each mitigation and at few token positions."""
    named: dict[str, Callable[[Row], Row]] = {}
    for branch in BRANCHES:
        mitigations = [name for name in METHODS if name not in OF_TEXTS] if branch in REPORTING else []
        for name in ("none", *PRUNED, *mitigations):
            named[f"{branch} | {name}"] = partial(attacked, branch, name)
    for positions in POSITIONS:
        named[f"C | from a random start, {positions or 'all'} positions"] = partial(narrowly, "C", positions)
    return Cases({"seeds": list(SEEDS), "pictures": PICTURES}, named, forget_retrained)


def rate(copied: Sequence[int]) -> str:
    """The copy rate with its interval over pictures."""
    return show(numbers_of(rate_interval(copied, [len(SEEDS)] * len(copied))))


def page(results: Row) -> Iterator[str]:
    """Before and after, of memorized pictures and of controls."""
    lines = []
    for key, row in results["settings"].items():
        branch, _, name = key.partition(" | ")
        cells = [rate(row[group][moment]) for group in GROUPS for moment in ("before", "after")]
        lines.append([branch, name, *cells])
    head = "branch | under, or from | memorized: before the search | after it | never trained on: before the search"
    yield from table(f"{head} | after it", lines)


STUDY = Study(
    title="DoRI, on the panel",
    about=f"{Dori().updates} updates, from the own prompt where nothing else is said, {PICTURES} pictures a group, "
    f"{len(SEEDS)} seeds that no search has seen. The search runs under what pictures are made under; mitigations that "
    "change words have nothing to change in what it finds and are left out. Intervals: over pictures.",
    page=page,
    measure=cases,
)
