"""Attacks on the panel: DoRI on the model as it came and pruned, and one that knows what is done at inference.

DoRI searches the weights: it meets pruning, and nothing of what acts while a picture is sampled. The adaptive attack
keeps of its candidates what comes nearest through the mitigation: from the own prompt under all of them, and from all
of its starts under the three that are best on A. Memorized are pictures that were planted a hundred times in the branch
and never in the other one; the controls are the reverse. Mitigations are in the settings that were chosen on A
(`published-mitigations`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from branches import REPORTING, forget_retrained, ordinary, other_of, places_of, references, subject_of
from cases.panel_pruning import memorized
from cases.published_mitigations import METHODS, best_first, chosen, known
from harness import Cases, Options, Row, Study, numbers_of, read, show, table

from unmemorize.attack.adaptive import Adaptive
from unmemorize.attack.dori import Dori
from unmemorize.attack.extraction import Init, Trial, extraction
from unmemorize.core.methods import Attack, Localizer, Mitigation, Subject, parse
from unmemorize.metrics.ranking import rate_interval
from unmemorize.metrics.similarity import match_targets
from unmemorize.mitigate.edit import Edit
from unmemorize.testbed.panel import Entry

PICTURES = 12  # of either group
# Starts of the attack that knows the mitigation, and pictures of either group; the own prompt is searched in two ways.
STARTS = {"from its own prompt": (2, 24), "from all starts": (8, 12)}
BEST = 3  # mitigations that are attacked from all starts
SEEDS = (700, 701)
POSITIONS = (1, 2, 4, 8, 0)  # that are searched from a random start; 0: all
PRUNED = {"Wanda, 10%": "wanda:sparsity=0.1", "Wanda, 40%": "wanda:sparsity=0.4"}
BRANCHES = ("C", "flow C")
OF_TEXTS = ("random-words", "random-numbers", "repeated-words")  # what an embedding without a text does not have
GROUPS = ("memorized", "never trained on")


def entries_of(branch: str, group: str) -> list[Entry]:
    """The pictures of a group: those of a branch, or those of the other branch alone."""
    return memorized(branch if group == GROUPS[0] else other_of(branch))


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


def knowingly(branch: str, name: str, starts: int, count: int, rows: Row) -> Row:
    """`searched` by the adaptive attack, which chooses among what it found by what comes through the mitigation."""
    fingerprint = subject_of(branch).model.fingerprint
    encode = subject_of(branch).model.encode
    _, others = ordinary()
    prompts = [entry.prompts[0] for entry in memorized(branch)]
    attack = Adaptive(starts=starts).prepared(encode(prompts), encode(others))
    with under(branch, name).applied(subject_of(branch)) as subject:
        return searched(branch, subject, attack, "prompt", count) | {"fingerprint": fingerprint}


def searched(branch: str, subject: Subject, attack: Attack, init: Init, count: int = PICTURES) -> Row:
    """Copies of each picture among so many seeds, before the search and after it."""
    judge = partial(match_targets, references=references())
    row: Row = {}
    trial = Trial((attack.updates,), init, seeds=SEEDS)
    for group in GROUPS:
        places = [places_of(entry)[0] for entry in entries_of(branch, group)[:count]]
        found, _ = extraction(subject, references()[places], attack, judge, trial)
        copied = found.copied[:, 0].sum(axis=-1)
        row[group] = {"before": copied[:, 0].tolist(), "after": copied[:, -1].tolist()}
    return row


def cases(options: Options) -> Cases:
    """DoRI on the model as it came, pruned, at few token positions, and under each mitigation; then one that knows."""
    named: dict[str, Callable[[Row], Row]] = {}
    mitigations = [name for name in METHODS if name not in OF_TEXTS]
    for branch in BRANCHES:
        for name in ("none", *PRUNED, *(mitigations if branch in REPORTING else ())):
            named[f"{branch} | {name}"] = partial(attacked, branch, name)
    for positions in POSITIONS:
        named[f"C | from a random start, positions: {positions or 'all'}"] = partial(narrowly, "C", positions)
    for (said, (starts, count)), names in zip(STARTS.items(), (("none", *mitigations), best()), strict=True):
        for name in names:
            named[f"C | {name} | {said}"] = partial(knowingly, "C", name, starts, count)
    return Cases({"seeds": list(SEEDS), "pictures": PICTURES}, named, forget_retrained)


def best() -> list[str]:
    """The mitigations that are best on A, of those that an embedding meets."""
    ranked = best_first(read("published-mitigations")["settings"])
    return [name for name in ranked if name not in OF_TEXTS][:BEST]


def rate(copied: Sequence[int]) -> str:
    """The copy rate with its interval over pictures."""
    return show(numbers_of(rate_interval(copied, [len(SEEDS)] * len(copied))))


def page(results: Row) -> Iterator[str]:
    """Before and after, of memorized pictures and of controls: by DoRI, then by the attack that knows."""
    of_dori, of_knowing = [], []
    for key, row in results["settings"].items():
        branch, name, *starts = key.split(" | ")
        cells = [rate(row[group][moment]) for group in GROUPS for moment in ("before", "after")]
        (of_knowing if starts else of_dori).append([branch, name, *starts, *cells])
    moments = "memorized: before the search | after it | never trained on: before the search | after it"
    yield from table(f"branch | under, or from | {moments}", of_dori)
    if of_knowing:
        counts = " and ".join(f"{said} {count}" for said, (_, count) in STARTS.items())
        yield from ("", f"The adaptive attack, whose choice meets the mitigation; {counts} pictures a group:", "")
        yield from table(f"branch | under | searched | {moments}", of_knowing)


STUDY = Study(
    title="Attacks, on the panel",
    about=f"DoRI: {Dori().updates} updates, from the own prompt where nothing else is said, {PICTURES} pictures a "
    f"group, {len(SEEDS)} seeds that no search has seen. It searches the weights, pruned or not, and **knows nothing "
    "of mitigations at inference**, which act on the pictures that are judged. The adaptive attack chooses among what "
    "it found by what comes through the mitigation. Mitigations have the settings chosen on A, the guard "
    "`false_alarms=0.05,under=0`. Those that change words have nothing to change in an "
    "embedding and are left out. Intervals: over pictures.",
    page=page,
    measure=cases,
)
