"""Whether pictures that a mitigation took away come back when the model is trained on with other pictures.

Goes on from the erased model of `panel-mitigations`, where it is at hand, and from one whose memories are only hidden,
with ordinary pictures and captions alone. `--attack` attacks the result as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

from branches import bundle_of, name_of, places_of, references, subject_of
from cases.panel_attack import under
from cases.panel_mitigations import folder
from cases.panel_pruning import memorized
from common import SAMPLER
from harness import Cases, Options, Row, Study, show, table

from unmemorize.attack.dori import Dori
from unmemorize.core.methods import Subject
from unmemorize.core.model import DiffusionModel
from unmemorize.models.load import load
from unmemorize.stages.unlearner import pairs_of
from unmemorize.study.copies import copy_check
from unmemorize.study.effects import attacked_from_both, copies_of, judge_of, rate_of
from unmemorize.study.pairs import ordinary_pictures
from unmemorize.unlearn.deletion import Ordinary
from unmemorize.unlearn.finetune import Finetune, finetune

BRANCH = "C"
HIDDEN = "Wanda, 40%"  # the positive control: most copies are gone, and attacks bring them back
MODELS = ("erase", HIDDEN)
UPDATES = (0, 25, 50, 100, 400)
LR, BATCH, SEED = 2e-4, 8, 3_000_000  # the rate of the methods that train; no other attack has this seed


def start_of(name: str) -> DiffusionModel:
    """The model to go on from."""
    if name == "erase":
        return load(str(folder(BRANCH, name) / "model"))
    model = load(name_of(BRANCH))
    under(BRANCH, name).apply(model)
    return model


def trained_on(model: DiffusionModel, updates: int) -> None:
    """Denoise ordinary pictures under their own captions."""
    pairs = pairs_of(model, ordinary_pictures(bundle_of(BRANCH), model.image_size).train)
    objective = Ordinary(pairs, model.encode([""]), batch=BATCH, seed=0)
    with TemporaryDirectory() as checkpoints:
        finetune(model, objective, Finetune(updates=updates, lr=LR), Path(checkpoints))


def measured(name: str, updates: int, attack: bool, rows: Row) -> Row:
    """Copy rates for the prompts and, if asked for, after DoRI from prompts and from N(0, I)."""
    model = start_of(name)
    judge = judge_of(model, copy_check(model, references(), "testbed"), (0, 1), testbed=True)
    targets = references()[[places_of(entry)[0] for entry in memorized(BRANCH)]]
    if updates:
        trained_on(model, updates)
    subject = Subject(model, SAMPLER)
    rates = {"prompt": rate_of(copies_of(subject, model.encode(targets.prompts), targets, judge))}
    if attack:
        attacked = attacked_from_both(subject, targets, judge, seed=SEED, attack=Dori())
        rates |= {f"attacked from {init}": rate_of(hits) for init, hits in attacked.items()}
    return rates


def cases(options: Options) -> Cases:
    """Every model after every number of updates."""
    named = {}
    for name, updates in product(MODELS, UPDATES):
        if name == HIDDEN or (folder(BRANCH, name) / "model").exists():
            named[f"{name} | {updates}"] = partial(measured, name, updates, options.attack)
    return Cases({"fingerprint": subject_of(BRANCH).model.fingerprint}, named)


def page(results: Row) -> Iterator[str]:
    """Copy rates by updates."""
    yield (
        f"Trained on with ordinary pictures (batch {BATCH}, learning rate {LR:g}), {len(memorized(BRANCH))} pictures "
        f"of {BRANCH} at two seeds. {HIDDEN} is the positive control: it hides pictures without removing them, and "
        "what the same updates bring back there is what this test can see."
    )
    columns = ("prompt", "attacked from prompt", "attacked from random")
    rows = [[*name.split(" | "), *(show(r.get(c)) for c in columns)] for name, r in results["settings"].items()]
    head = "model | updates on other pictures | own prompts | DoRI from the prompt | DoRI from N(0, I)"
    yield from ("", *table(head, rows))


STUDY = Study(
    title="Trained on after erasing",
    about="Whether fine-tuning on unrelated pictures brings back what was erased, beside a model that only hides.",
    page=page,
    measure=cases,
    options={"attack": False},
)
