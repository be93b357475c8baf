"""Whether pictures that a mitigation took away come back when the model is trained on with other pictures.

    python benchmarks/relearn.py [--only TEXT] [--attack]

Writes docs/results/relearn.{json,md}. Goes on from the model of `benchmarks/erase.py`, where it is at hand, and from
one whose memories are only hidden, with ordinary pictures and captions alone. `--attack` attacks the result as well.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

from common import SAMPLER, kept, often, planted, show, table, write
from erase import folder
from mitigated import PRUNED, at_hand, forget_retrained

from unmemorize.attack.dori import Dori
from unmemorize.core.methods import Subject
from unmemorize.core.model import DiffusionModel
from unmemorize.core.results import Interval
from unmemorize.data.bundle import Bundle
from unmemorize.jobs.copies import copy_check
from unmemorize.jobs.cured import Judge, attacked_from_both, copies_of, judge_of, rate_of
from unmemorize.jobs.pairs import captions_of, memorized_pictures, ordinary_pictures
from unmemorize.jobs.unlearning import pairs_of
from unmemorize.metrics.similarity import References
from unmemorize.mitigate.edit import Edit
from unmemorize.models.load import load
from unmemorize.testbed.embedded import own
from unmemorize.unlearn.deletion import Ordinary
from unmemorize.unlearn.finetune import Finetune, finetune

HIDDEN = "Wanda 40%"  # the positive control: most copies are gone, and attacks bring them back
MODELS = ("erase", HIDDEN)
UPDATES = (0, 25, 50, 100, 400)
TESTBED = Bundle("testbed", {}, own=own())
LR, BATCH, SEED = 2e-4, 8, 3_000_000  # the testbed was trained with this rate; no other attack has this seed


def mitigated(name: str) -> DiffusionModel:
    """The model to go on from."""
    if name == "erase":
        return load(str(folder(name) / "model"))
    model = load("testbed")
    found = PRUNED[name].find(Subject(model), model.encode([p.text for p in planted(often)]))
    Edit.of(found, model.fingerprint).apply(model)
    return model


def trained_on(model: DiffusionModel, updates: int) -> None:
    """Denoise ordinary pictures under their own captions."""
    pairs = pairs_of(model, ordinary_pictures(TESTBED, model.image_size).train)
    objective = Ordinary(pairs, model.encode([""]), batch=BATCH, seed=0)
    with TemporaryDirectory() as checkpoints:
        finetune(model, objective, Finetune(updates=updates, lr=LR), Path(checkpoints))


def judged(model: DiffusionModel, memorized: References, judge: Judge, attack: bool) -> dict[str, list[float]]:
    """Copy rates for the prompts and, if asked for, after DoRI from prompts and from N(0, I)."""
    subject = Subject(model, SAMPLER)
    own = copies_of(subject, model.encode(captions_of(memorized)), memorized, judge)
    if not attack:
        return {"prompt": rate_of(own)}
    attacked = attacked_from_both(subject, memorized, judge, seed=SEED, attack=Dori())
    return {"prompt": rate_of(own)} | {f"attacked from {init}": rate_of(hits) for init, hits in attacked.items()}


def page(results: dict) -> list[str]:
    """The numbers as a page."""
    head = ["model", "updates on other pictures", "own prompts", "DoRI from the prompt", "DoRI from N(0, I)"]
    rows = []
    for name, rates in results["settings"].items():
        columns = ("prompt", "attacked from prompt", "attacked from random")
        rows.append([*name.split(" | "), *(show(Interval(*rates[c]) if c in rates else None, 2) for c in columns)])
    about = (
        f"Trained on with ordinary pictures (batch {BATCH}, learning rate {LR:g}), eighteen pictures at two seeds. "
        f"{HIDDEN} is the positive control: it hides pictures without removing them, and what the same updates bring "
        "back there is what this test can see. Of erase, 50 updates were measured before the row without updates and "
        "the control were added (2026-11-26); its model is not at hand."
    )
    return [about, "", *table(head, rows)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="measure settings, MODEL | UPDATES, whose name contains this")
    parser.add_argument("--attack", action="store_true")
    options = parser.parse_args()
    results = kept("relearn", {"fingerprint": load("testbed").fingerprint})
    forget_retrained(results)
    for name, updates in product(MODELS, UPDATES):
        setting = f"{name} | {updates}"
        if setting in results["settings"] or options.only not in setting or not at_hand(name):
            continue
        model = mitigated(name)
        check = copy_check(model, TESTBED.references(model.image_size), "testbed")
        judge = judge_of(model, check, (0, 1), testbed=True)
        memorized = memorized_pictures(TESTBED, model.image_size)
        if updates:
            trained_on(model, updates)
        results["settings"][setting] = judged(model, memorized, judge, options.attack)
        write("relearn", results, page(results))


if __name__ == "__main__":
    main()
