"""Is this picture in there? Every picture test on pictures that one reporting branch was trained on and the other not.

The same pictures are positive in one branch and negative in the other, so that no kind of picture is easier than the
other. With the caption and without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from branches import FLOW, REPORTING, forget_retrained, letter, pairs, places_of, references, subject_of
from harness import Cases, Options, Row, Study, numbers_of, show, table
from tqdm import tqdm

from unmemorize.core.methods import PictureTest, parse
from unmemorize.core.results import Pairs
from unmemorize.metrics.ranking import auc, cluster_bootstrap, tpr_at_fpr

SEEDS = (800, 801)
TESTS = ("velocity-error", "flipd", "one-laplacian", "loss")
CAPTIONED = (*TESTS, "nearest-generation")
UNCAPTIONED = (*TESTS, "few-tokens")
FAMILIES = {"U-Net": REPORTING, "transformer": FLOW}


def scored(branch: str, text: str, captioned: bool, rows: Row) -> Row:
    """The score of every picture, the mean over seeds."""
    subject = subject_of(branch)
    test: PictureTest = parse("picture-test", text)
    pictures = references()[[places_of(entry)[0] for entry in pairs()]]
    values = []
    for part in tqdm(list(pictures.batches(16)), f"{branch}, {text}"):
        done = len(values)
        prompts = [entry.prompts[0] if captioned else "" for entry in pairs()[done : done + len(part)]]
        with torch.no_grad():
            captioned_pictures = Pairs(subject.model.invert(part), subject.model.encode(prompts))
        values += test.score(subject, captioned_pictures, seeds=SEEDS).value.tolist()
    return {"fingerprint": subject.model.fingerprint, "scores": values}


def cases(options: Options) -> Cases:
    """Both branches of both families; the dear test of few tokens on the U-Net alone."""
    named: dict[str, Callable[[Row], Row]] = {}
    for family, branches in FAMILIES.items():
        for captioned, tests in ((True, CAPTIONED), (False, UNCAPTIONED)):
            for text in tests:
                if family == "transformer" and text.startswith("few-tokens"):
                    continue
                for branch in branches:
                    named[f"{branch} | {said(captioned)} | {text}"] = partial(scored, branch, text, captioned)
    return Cases({"seeds": list(SEEDS)}, named, forget_retrained)


def said(captioned: bool) -> str:
    """As the page says it."""
    return "with its caption" if captioned else "without"


def page(results: Row) -> Iterator[str]:
    """How well each test tells the branch that was trained on a picture from the one that was not."""
    settings = results["settings"]
    lines = []
    for family, branches in FAMILIES.items():
        for captioned, tests in ((True, CAPTIONED), (False, UNCAPTIONED)):
            for text in tests:
                keys = [f"{branch} | {said(captioned)} | {text}" for branch in branches]
                if all(key in settings for key in keys):
                    numbers = compared(branches, [settings[key]["scores"] for key in keys])
                    lines.append([family, f"`{text}`", said(captioned), *numbers])
    yield from table("family | test | asked | AUC | TPR at 1% FPR | paired: higher where it was trained on", lines)


def compared(branches: Sequence[str], scores: Sequence[Sequence[float]]) -> list[str]:
    """Area, true positive rate, and the share of pictures that score higher in the branch that knows them."""
    values, positive, clusters, higher = [], [], [], []
    for place, entry in enumerate(pairs()):
        own = [entry.dose(letter(branch)) > 0 for branch in branches]
        both = [of_branch[place] for of_branch in scores]
        values += both
        positive += own
        clusters += [entry.id] * len(branches)
        higher.append(both[own.index(True)] > both[own.index(False)])
    drawn = (np.array(values), np.array(positive), clusters)
    area = numbers_of(cluster_bootstrap(auc, *drawn))
    rate = numbers_of(cluster_bootstrap(tpr_at_fpr, *drawn))
    return [show(area, ".3f"), show(rate), f"{sum(higher)} of {len(higher)}"]


STUDY = Study(
    title="Is this picture in there?",
    about="Forty-eight pictures, each planted a hundred times in C and never in D or the reverse, asked of both: what "
    "a test says of the picture alone is the same in both (0.5). Two seeds; nothing was chosen. *Paired*: each picture "
    "against itself in the other branch, which only who has such a branch can ask. Intervals resample pictures.",
    page=page,
    measure=cases,
)
