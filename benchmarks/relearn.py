"""Whether erased pictures come back when the model is trained on with other pictures.

    python benchmarks/relearn.py [--updates 25 100]

Writes docs/results/relearn.{json,md}. Goes on from the model of `benchmarks/erase.py` with ordinary pictures and
captions alone, and attacks it again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

from common import kept, show, table, write
from erase import folder

from unmemorize.attack.dori import Dori
from unmemorize.core.results import Interval
from unmemorize.jobs.copies import copy_check
from unmemorize.jobs.cured import Judge, attacked_from_both, copies_of, judge_of, latents_of, rate_of
from unmemorize.jobs.pairs import PLAN, captions_of, memorized_pictures, ordinary_pictures
from unmemorize.metrics.similarity import References
from unmemorize.mitigate.deletion import Deletion
from unmemorize.mitigate.denoising import Pairs
from unmemorize.mitigate.finetune import Finetune, finetune
from unmemorize.models.load import fingerprint, load
from unmemorize.models.unet import UNetModel

LR, BATCH, SEED = 2e-4, 8, 3_000_000  # the testbed was trained with this rate; no other attack has this seed


def trained_on(model: UNetModel, updates: int) -> None:
    """Denoise ordinary pictures under their own captions."""
    ordinary = ordinary_pictures(model, "testbed", PLAN).train
    pairs = Pairs(latents_of(model, ordinary.images), model.encode(captions_of(ordinary)).embeds)
    objective = Deletion(pairs, model.encode([""]).embeds[0], batch=BATCH, seed=0)
    with TemporaryDirectory() as checkpoints:
        finetune(model, objective, Finetune(updates=updates, lr=LR), Path(checkpoints))


def judged(model: UNetModel, memorized: References, judge: Judge) -> dict[str, list[float]]:
    """Copy rates for the prompts, and after DoRI from prompts and from N(0, I)."""
    own = copies_of(model, model.encode(captions_of(memorized)), memorized, judge)
    attacked = attacked_from_both(model, memorized, judge, seed=SEED, how=Dori())
    return {"prompt": rate_of(own)} | {f"attacked from {init}": rate_of(hits) for init, hits in attacked.items()}


def page(results: dict) -> list[str]:
    """The numbers as a page."""
    head = ["updates on other pictures", "own prompts", "DoRI from the prompt", "DoRI from N(0, I)"]
    rows = [
        [updates, *(show(Interval(*rate), 2) for rate in found.values())]
        for updates, found in results["settings"].items()
    ]
    about = (
        f"The model of erase, trained on with ordinary pictures (batch {BATCH}, learning rate {LR:g}), then attacked."
    )
    return [about, "", *table(head, rows)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, nargs="+", default=[0, 25, 100])
    options = parser.parse_args()
    cured = str(folder("erase") / "model")
    results = kept("relearn", {"fingerprint": fingerprint(load(cured))})
    for updates in options.updates:
        if str(updates) in results["settings"]:
            continue
        model = load(cured)
        check = copy_check(model, "testbed", "", "", "sscd-320")
        judge = judge_of(model, "testbed", check, (0, 1), 16, 7.5)
        if updates:
            trained_on(model, updates)
        results["settings"][str(updates)] = judged(model, memorized_pictures(model, "testbed", PLAN), judge)
        write("relearn", results, page(results))


if __name__ == "__main__":
    main()
