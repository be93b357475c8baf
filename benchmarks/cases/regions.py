"""Maps of where a picture's memory shows, on planted templates, of which a box varies and the rest is fixed.

What is memorized of a template is its fixed part. A map tells it if it is higher there than in the box; templates of a
branch that was never trained on them are the control. Thresholds are chosen on A.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
from branches import FLOW, REPORTING, forget_retrained, letter, places_of, references, subject_of, templates
from common import are_copies, match_closest
from harness import Cases, Options, Row, Study, numbers_of, show, table
from numpy.typing import NDArray
from tqdm import tqdm

from unmemorize.core.errors import NotApplicable
from unmemorize.core.methods import Explainer, parse
from unmemorize.core.records import Interval
from unmemorize.core.results import Regions
from unmemorize.metrics.ranking import TAILS, auc
from unmemorize.testbed.panel import Entry

SEEDS = (900, 901, 902, 903)
MAPS = ("bright-ending", "score-map", "curvature-map")
THRESHOLDS = tuple(k / 20 for k in range(20))  # of a picture's highest value
Mask = NDArray[np.bool_]


def fixed(entry: Entry, height: int, width: int) -> Mask:
    """The places of a latent whose middle is outside the box that varies, (height, width)."""
    assert entry.mask is not None  # as templates have
    left, top, right, bottom = entry.mask
    size = references().images.shape[-1]
    y, x = (np.mgrid[:height, :width] + 0.5) * size / np.array([height, width])[:, None, None]
    return ~((left <= x) & (x < right) & (top <= y) & (y < bottom))


def overlap(found: Mask, truth: Mask) -> float:
    """Intersection over union."""
    return float((found & truth).sum() / max((found | truth).sum(), 1))


def mapped(branch: str, text: str, rows: Row) -> Row:
    """By template and seed: is it a copy, is the map higher on what is fixed, and their overlap by threshold."""
    subject = subject_of(branch)
    explainer: Explainer = parse("explainer", text)
    row: Row = {"fingerprint": subject.model.fingerprint, "copied": [], "area": [], "overlap": [], "of box": []}
    for entry in tqdm(templates(), f"{branch}, {text}"):
        try:
            regions = explainer.explain(subject, entry.prompts[0], seeds=SEEDS)
        except NotApplicable as error:
            return {"fingerprint": subject.model.fingerprint, "reason": str(error)}
        assert isinstance(regions, Regions)  # it says regions
        images = subject.model.decode(regions.latents.to(subject.model.device)).float().cpu()
        row["copied"].append(are_copies(match_closest(images, [places_of(entry)] * len(SEEDS), references())))
        truth = fixed(entry, *regions.maps.shape[1:])
        row["area"].append([auc(values.flatten(), truth.flatten()) for values in regions.maps.double().numpy()])
        above = [regions.above(threshold).numpy() for threshold in THRESHOLDS]
        row["overlap"].append([[overlap(found, truth) for found in of_seed] for of_seed in zip(*above, strict=True)])
        row["of box"].append([[overlap(~found, ~truth) for found in of_seed] for of_seed in zip(*above, strict=True)])
    return row


def cases(options: Options) -> Cases:
    """Every map on the choosing branch and on all that report."""
    named: dict[str, Callable[[Row], Row]] = {}
    for branch in ("A", *REPORTING, *FLOW):
        for text in MAPS:
            named[f"{branch} | {text}"] = partial(mapped, branch, text)
    return Cases({"seeds": list(SEEDS)}, named, forget_retrained)


def of_templates(branch: str, row: Row, *, trained: bool) -> list[tuple[int, int]]:
    """Templates and seeds: copies of what a branch was trained on, or all pictures of what it was not."""
    chosen = []
    for i, entry in enumerate(templates()):
        for k in range(len(SEEDS)):
            if (entry.dose(letter(branch)) > 0) == trained and (row["copied"][i][k] or not trained):
                chosen.append((i, k))
    return chosen


def mean(values: Sequence[float], groups: Sequence[int]) -> Interval:
    """The mean, resampled by template."""
    by_group = [[v for v, g in zip(values, groups, strict=True) if g == group] for group in dict.fromkeys(groups)]
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(1000):
        some = rng.integers(len(by_group), size=len(by_group))
        drawn.append(np.concatenate([by_group[i] for i in some]).mean())
    low, high = np.quantile(drawn, TAILS)
    return Interval(float(np.mean(values)), float(low), float(high))


def measured(branch: str, row: Row, name: str, *, trained: bool, threshold: int | None = None) -> Interval:
    """The mean over pictures of one number of a map."""
    chosen = of_templates(branch, row, trained=trained)
    values = [row[name][i][k] if threshold is None else row[name][i][k][threshold] for i, k in chosen]
    return mean(values, [i for i, _ in chosen])


def best_threshold(row: Row, name: str) -> int:
    """The place of the threshold with the largest mean overlap on A."""
    return max(range(len(THRESHOLDS)), key=lambda t: measured("A", row, name, trained=True, threshold=t).value)


def page(numbers: Row) -> Iterator[str]:
    """How each map tells what is fixed of a template from the box that varies."""
    settings = numbers["settings"]
    lines = []
    for key, row in settings.items():
        branch, _, text = key.partition(" | ")
        if branch == "A" or "reason" in row:
            continue
        chosen = of_templates(branch, row, trained=True)
        cells = [branch, f"`{text}`", f"{len(chosen)} of {len({i for i, _ in chosen})} templates"]
        cells += [show(numbers_of(measured(branch, row, "area", trained=trained))) for trained in (True, False)]
        for name in ("overlap", "of box"):
            threshold = best_threshold(settings[f"A | {text}"], name)
            found = measured(branch, row, name, trained=True, threshold=threshold)
            cells.append(f"{show(numbers_of(found))} above {THRESHOLDS[threshold]:.2f}")
        lines.append(cells)
    head = "branch | map | copies | higher on what is fixed | never trained on | IoU with what is fixed"
    yield from table(f"{head} | IoU of the rest with the box", lines)
    whole = np.mean([fixed(entry, 64, 64).mean() for entry in templates()])
    yield from ("", f"A map that is above its threshold everywhere overlaps {whole:.2f} with what is fixed.")


STUDY = Study(
    title="Where in a picture its memory shows",
    about="Twenty templates, each with a box whose colour varied in training while all else stayed, half of them "
    f"planted in a branch; {len(SEEDS)} seeds. *Higher on what is fixed*: the chance that a place of the fixed part "
    "has a higher value than one of the box (0.5 says nothing), on pictures that are copies, and on those of templates "
    "that the branch never saw. Thresholds, shares of a map's highest value, have the largest overlap on A. Intervals: "
    "over templates.",
    page=page,
    measure=cases,
)
