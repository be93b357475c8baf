"""A first look at all detectors on the testbed: which tell planted prompts from ordinary ones, at four seeds.

One recording feeds all. Detectors that compare with ordinary prompts are fitted on negatives that are not scored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial

import numpy as np
from common import of_kind, often, planted
from harness import Cases, Options, Row, Study, show, table

from unmemorize.core.choose import evenly
from unmemorize.core.methods import Detector, parse, score_each
from unmemorize.core.recording import Recorder
from unmemorize.core.sample import Sampler
from unmemorize.data.source import Prompt
from unmemorize.metrics.ranking import auc, cluster_bootstrap, text_scores
from unmemorize.models.load import load

SEEDS = (300, 301, 302, 303)
NEGATIVES, FITTED_ON = 48, 16  # related ones stay together
ROUNDS = 300  # of the bootstrap
AT_START = (
    "noise-gap",
    "seed-agreement",
    "mid-noise",
    "two-probe",
    "sharpness",
    "condition-jacobian",
    "anisotropy",
    "dcs",
    "metric-2",
)
ALONG = ("max-z", "stability", "dsm")  # sixteen times as dear: on the planted model alone
METHODS = {"testbed": AT_START, "testbed-twin": AT_START, "testbed, along sampling": ALONG}
GROUPS: dict[str, Callable[[Prompt], bool]] = {
    "verbatim, 100 copies or more": often,
    "verbatim, 30 copies": lambda p: p.kind == "verbatim" and p.copies == 30,
    "template": lambda p: p.kind == "template",
    "repeat": lambda p: p.kind == "repeat",
}


def chosen() -> tuple[list[Prompt], list[Prompt]]:
    """The prompts that are scored, and the negatives that detectors are fitted on; no cluster is in both."""
    negatives = of_kind("negative")
    clusters = list(dict.fromkeys(p.cluster for p in negatives))
    order = [clusters[i] for i in evenly(len(clusters), len(clusters) // 2)]
    scored = [p for p in negatives if p.cluster in set(order)][:NEGATIVES]
    others = [p for p in negatives if p.cluster not in set(order)][:FITTED_ON]
    return planted(lambda p: any(belongs(p) for belongs in GROUPS.values())) + scored, others


def measured(name: str, rows: Row) -> Row:
    """The area of detectors on one model, by group, and what each cost."""
    prompts, others = chosen()
    model = load(name.split(",")[0])
    recorder = Recorder(model, Sampler(), SEEDS)
    detectors: list[Detector] = [parse("detector", text) for text in METHODS[name]]
    unfitted = [detector for detector in detectors if "ordinary" in detector.needs]
    ordinary = score_each(unfitted, recorder, model.encode([p.text for p in others]))
    for detector, scores in zip(unfitted, ordinary, strict=True):
        detectors[detectors.index(detector)] = detector.fitted(scores)
    found: Row = {}
    scores = score_each(detectors, recorder, model.encode([p.text for p in prompts]))
    for detector, own in zip(detectors, scores, strict=True):
        values = own.value.double().numpy()
        found[detector.name] = {group: area(values, prompts, group) for group in GROUPS}
        found[detector.name]["evaluations"] = own.evaluations / own.by_seed.numel()
    return found


def area(values: np.ndarray, prompts: list[Prompt], group: str) -> Row:
    """The area under the ROC curve of a group against the negatives, with its interval over clusters."""
    rows = [i for i, p in enumerate(prompts) if GROUPS[group](p) or p.kind == "negative"]
    labels = np.array([GROUPS[group](prompts[i]) for i in rows])
    clusters = [str(prompts[i].cluster) for i in rows]
    return asdict(cluster_bootstrap(auc, values[rows], labels, clusters, rounds=ROUNDS))


def control(rows: Row) -> Row:
    """The same for a classifier that sees the text alone."""
    prompts, _ = chosen()
    areas = {}
    for group, belongs in GROUPS.items():
        some = [p for p in prompts if belongs(p) or p.kind == "negative"]
        labels = np.array([belongs(p) for p in some])
        values = text_scores([p.text for p in some], labels, [str(p.cluster) for p in some])
        areas[group] = area(values, some, group)
    return areas


def cases(options: Options) -> Cases:
    """The first step on both models, the path on one, and the control."""
    named: dict[str, Callable[[Row], Row]] = {"text alone": control}
    named |= {name: partial(measured, name) for name in METHODS}
    return Cases({"seeds": list(SEEDS)}, named)


def page(numbers: Row) -> Iterator[str]:
    """Areas by detector and group, the twin's behind them."""
    settings = numbers["settings"]
    ours = settings.get("testbed", {}) | settings.get("testbed, along sampling", {})
    twin = settings.get("testbed-twin", {})
    rows = []
    for name in (*AT_START, *ALONG):
        if name in ours:
            cells = [show(ours[name][group]) for group in GROUPS]
            value = twin[name][next(iter(GROUPS))] if name in twin else None
            rows.append([f"`{name}`", f"{ours[name]['evaluations']:.3g}", *cells, show(value)])
    if "text alone" in settings:
        rows.append(["text alone (control)", "0", *(show(settings["text alone"][group]) for group in GROUPS), "–"])
    yield from table(["detector", "evaluations beside those above", *GROUPS, f"twin: {next(iter(GROUPS))}"], rows)


STUDY = Study(
    title="All detectors, a first look",
    about="The area under the ROC curve of planted prompts against 48 negatives, at four seeds and the testbed's own "
    "sixteen steps. **One small model, few prompts, no ranking**: intervals overlap, differences are not tested, and "
    "the jump of `mid-noise` and `two-probe` was chosen in a trial on these prompts. What is compared with ordinary "
    "prompts was fitted on 16 other negatives. All read one recording: an evaluation counts where it is read first. An "
    "interval from 1.00 to 1.00 says that these prompts are told apart, not that all would be.",
    page=page,
    measure=cases,
)
