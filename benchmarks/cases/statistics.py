"""Size, power and coverage of every test and interval that is printed, by simulation with a known truth.

Draws are seeded, so the numbers are the same every time; a few minutes on one core. `--scale 0.1` makes a tenth of the
draws. The page is docs/statistics.md.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
import pyarrow as pa
from harness import Cases, Options, Study, table
from numpy.random import Generator
from scipy.spatial.distance import pdist
from scipy.special import gammaln
from scipy.stats import fisher_exact, norm

from unmemorize.data.database import database
from unmemorize.data.duplicates import group_pictures
from unmemorize.data.intake import ROWS
from unmemorize.data.repeats import caption_templates, repeated_words
from unmemorize.data.words import collect_captions, shared_words
from unmemorize.metrics.calibrate import check_calibration, conformal_p_values, conformal_threshold
from unmemorize.metrics.discovery import benjamini_hochberg, false_discovery
from unmemorize.metrics.permutation import nearness_test
from unmemorize.metrics.quality import compare, fid, kid, mean_of
from unmemorize.metrics.ranking import auc, cluster_bootstrap, rate_interval, share_interval, text_scores, tpr_at_fpr

WIDTH = 118  # of the page's lines
Floats = np.ndarray


@dataclass(frozen=True)
class Simulated:
    """What was simulated, under which truth, how often, what is promised, and what came out with its error."""

    what: str
    truth: str
    draws: int
    promised: str
    measured: float
    error: float


def row(what: str, truth: str, promised: str, hits: Sequence[float]) -> Simulated:
    """The mean of `hits`; its standard error is that of a rate with one more hit and one more miss, so never zero."""
    values = np.asarray(hits, float)
    n = len(values)
    smooth = (values.sum() + 1) / (n + 2)
    return Simulated(what, truth, n, promised, float(values.mean()), float(np.sqrt(smooth * (1 - smooth) / n)))


def holds(interval: Any, truth: float) -> bool:
    return interval.low <= truth <= interval.high


# Rates


def correlated(rng: Generator, units: int, trials: int, rate: float, correlation: float) -> Floats:
    """Hits (units, trials): each unit's own rate is beta distributed, so that two of its trials correlate."""
    if correlation == 0:
        return rng.random((units, trials)) < rate
    if correlation == 1:
        return np.repeat(rng.random((units, 1)) < rate, trials, axis=1)
    total = 1 / correlation - 1
    own = rng.beta(rate * total, (1 - rate) * total, (units, 1))
    return rng.random((units, trials)) < own


def rates(scale: float) -> list[Simulated]:
    draws, found = int(1000 * scale), []
    for units, trials, correlation in ((6, 4, 0.3), (17, 4, 0.0), (17, 4, 0.3), (17, 4, 1.0), (60, 2, 0.3)):
        for rate in (0.02, 0.1, 0.5):
            rng = np.random.default_rng(0)
            hits = [
                holds(share_interval(correlated(rng, units, trials, rate, correlation)), rate) for _ in range(draws)
            ]
            truth = f"rate {rate}, seeds correlate by {correlation}"
            found.append(row(f"{units} pictures, {trials} seeds", truth, "≥ 0.95", hits))
    trials = np.array([1, 1, 1, 1, 2, 2, 2, 4, 4, 6, 12])
    for rate in (0.1, 0.5):
        rng = np.random.default_rng(0)
        hits = []
        for _ in range(draws):
            own = np.repeat(rng.random(len(trials)) < rate, 1) * trials
            hits.append(holds(rate_interval(own.tolist(), trials.tolist()), rate))
        found.append(row("11 clusters of 1 to 12 prompts", f"rate {rate}, a cluster agrees", "≥ 0.95", hits))
    rng = np.random.default_rng(0)
    half = []
    for _ in range(draws):
        pair = np.repeat(rng.random(9) < 0.5, 2)[:, None]
        half.append(holds(share_interval(pair), 0.5))
    found.append(row("18 pictures that are 9 pairs of duplicates", "rate 0.5, a pair agrees", "≥ 0.95", half))
    return found


# Rankings


def fast_auc(scores: Floats, positive: Floats) -> float:
    """`auc` by counting, ties one half: a bootstrap of a bootstrap is long."""
    low = np.sort(scores[~positive])
    below, not_above = (np.searchsorted(low, scores[positive], side) for side in ("left", "right"))
    return float((below + not_above).mean() / 2 / len(low))


def fast_tpr(scores: Floats, positive: Floats) -> float:
    """`tpr_at_fpr` at 0.01 by counting."""
    low = np.sort(scores[~positive])
    return float((scores[positive] > low[len(low) - 1 - int(0.01 * len(low))]).mean())


def ranked(rng: Generator, clusters: int, largest: int, shift: float) -> tuple[Floats, Floats, list[str]]:
    """Normal scores of positives and negatives in clusters; half of the variance is a cluster's."""
    sizes = rng.integers(1, largest + 1, 2 * clusters)
    member = np.repeat(np.arange(2 * clusters), sizes)
    positive = member < clusters
    scores = (rng.normal(size=2 * clusters)[member] + rng.normal(size=len(member))) / 2**0.5 + shift * positive
    return scores, positive, [str(c) for c in member]


def rankings(scale: float) -> list[Simulated]:
    rng = np.random.default_rng(1)
    for _ in range(20):
        scores, positive, _ = ranked(rng, 30, 6, 1.0)
        scores = np.round(scores, 1)
        assert np.isclose(fast_auc(scores, positive), auc(scores, positive))
        assert np.isclose(fast_tpr(scores, positive), tpr_at_fpr(scores, positive))
    draws, found = int(150 * scale), []
    for clusters, largest in ((8, 6), (30, 6), (150, 1)):
        for name, statistic, truth_of in (
            ("AUC", fast_auc, lambda shift: norm.cdf(shift / 2**0.5)),
            ("TPR at 1% FPR", fast_tpr, lambda shift: norm.sf(norm.ppf(0.99) - shift)),
        ):
            for shift in (0.0, 1.5):
                rng = np.random.default_rng(2)
                truth, hits = float(truth_of(shift)), []
                for _ in range(draws):
                    scores, positive, names = ranked(rng, clusters, largest, shift)
                    hits.append(holds(cluster_bootstrap(statistic, scores, positive, names, rounds=200), truth))
                what = f"{name}, {clusters} clusters of 1 to {largest} either kind"
                found.append(row(what, f"{truth:.3f}", "0.95", hits))
    sizes, hits = (40, 1), []
    rng = np.random.default_rng(3)
    for _ in range(int(60 * scale) + 2):
        prompts = [" ".join(f"w{w}" for w in rng.zipf(1.5, 6).clip(max=200)) for _ in range(2 * sizes[0])]
        positive = rng.permutation(2 * sizes[0]) < sizes[0]
        names = [str(i) for i in range(len(prompts))]
        hits.append(cluster_bootstrap(fast_auc, text_scores(prompts, positive, names), positive, names, rounds=200))
    found.append(
        row("Text-only AUC, 40 prompts either kind", "0.500: words say nothing", "0.95", [holds(h, 0.5) for h in hits])
    )
    above = [h.low > 0.5 for h in hits]
    found.append(row("Text-only AUC, lower limit above 0.5", "words say nothing", "0.025", above))
    return found


# Quality


def quality(scale: float) -> list[Simulated]:
    draws, found = int(240 * scale), []
    prompts, seeds, real, width = 40, 2, 60, 5
    clusters = [str(i // seeds) for i in range(prompts * seeds)]
    for shift, said in ((0.0, "pictures as good as real ones"), (0.6, "pictures shifted by 0.6")):
        for name, measure in (("KID", kid), ("FID", fid)):
            rng = np.random.default_rng(4)
            before_holds, change_holds = [], []
            truth = distance(name, shift, width)
            for _ in range(draws):
                y = rng.normal(size=(real, width))
                common = np.repeat(rng.normal(size=(prompts, width)), seeds, axis=0)
                x, z = ((common + rng.normal(size=common.shape)) / 2**0.5 + shift / width**0.5 for _ in range(2))
                change = compare(measure(x, y), measure(z, y), clusters, real, rounds=200)
                before_holds.append(holds(change.before, truth))
                change_holds.append(holds(change.change, 0.0))
            found.append(row(f"{name} itself", said, "0.95", before_holds))
            found.append(row(f"{name}, change of the ratio", f"{said}; no change", "0.95", change_holds))
    for prompts_there in (10, 40):
        rng, hits = np.random.default_rng(5), []
        names = [str(i // seeds) for i in range(prompts_there * seeds)]
        for _ in range(draws * 2):
            common = np.repeat(rng.normal(1.0, 0.2, prompts_there), seeds)
            x, z = (common + rng.normal(0, 0.1, len(common)) for _ in range(2))
            hits.append(holds(compare(mean_of(x), mean_of(z), names, 1, rounds=200).change, 0.0))
        found.append(row(f"Alignment, change, {prompts_there} prompts", "no change", "0.95", hits))
    return found


def distance(name: str, shift: float, width: int) -> float:
    """KID or FID of two normal distributions, `shift` apart: FID is its square, KID from two million pairs."""
    if name == "FID" or shift == 0:
        return shift**2
    rng = np.random.default_rng(6)
    offset = shift / width**0.5

    def mean(first: float, second: float) -> float:
        x, y = rng.normal(first, 1, (2_000_000, width)), rng.normal(second, 1, (2_000_000, width))
        return float(((np.einsum("nd,nd->n", x, y) / width + 1) ** 3).mean())

    return mean(offset, offset) + mean(0, 0) - 2 * mean(offset, 0)


# Calibration


def ordinary_scores(rng: Generator, prompts: int, seeds: int, correlation: float) -> Floats:
    own = rng.normal(size=(prompts, 1)) * correlation**0.5
    return own + rng.normal(size=(prompts, seeds)) * (1 - correlation) ** 0.5


def calibration(scale: float) -> list[Simulated]:
    draws, found = int(4000 * scale), []
    for n in (40, 225):
        rng = np.random.default_rng(7)
        p = [conformal_p_values([rng.normal()], rng.normal(size=n))[0] for _ in range(draws)]
        found.append(row(f"p ≤ 0.05, {n} ordinary prompts", "an ordinary prompt", "≤ 0.05", np.array(p) <= 0.05))
    rng, clustered = np.random.default_rng(8), []
    for _ in range(draws):
        known = np.repeat(rng.normal(size=25), 6) * 0.5**0.5 + rng.normal(size=150) * 0.5**0.5
        clustered.append(conformal_p_values([rng.normal()], known)[0] <= 0.05)
    found.append(row("p ≤ 0.05, 150 in clusters of six", "an ordinary prompt of a new cluster", "≤ 0.05", clustered))
    for prompts, said in (
        (225, "one seed a prompt"),
        (25, "prompts × seeds pooled, 25 × 4: wrong"),
        (225, "prompts × seeds pooled, 225 × 4: wrong"),
    ):
        rng, alarms = np.random.default_rng(9), []
        for _ in range(draws):
            known = ordinary_scores(rng, prompts, 1 if "one" in said else 4, 0.95)
            alarms.append(rng.normal() > conformal_threshold(known.ravel(), false_alarms=0.01))
        found.append(row(f"threshold for 1%, {said}", "an ordinary prompt, seeds correlate by 0.95", "≤ 0.01", alarms))
    rng, both = np.random.default_rng(10), []
    for _ in range(int(300 * scale)):
        known = rng.normal(size=150)
        check = check_calibration(rng.normal(size=50), known, [str(i // 6) for i in range(150)])
        both.append(holds(check.alarms, 0.05))
    found.append(row("interval of alarms on fresh prompts", "alarms at 0.05, 25 clusters of six", "≥ 0.95", both))
    return found


# Many tests


def discoveries(scale: float) -> list[Simulated]:
    draws, found = int(1500 * scale), []
    for memorized in (0, 20):
        rng, false_share, power = np.random.default_rng(11), [], []
        for _ in range(draws):
            scores = rng.normal(size=200) + 4 * (np.arange(200) < memorized)
            picked = benjamini_hochberg(conformal_p_values(scores, rng.normal(size=1000))) <= 0.05
            false_share.append(picked[memorized:].sum() / max(picked.sum(), 1))
            power.append(picked[:memorized].mean() if memorized else 0)
        said = f"{memorized} of 200 are memorized, 1,000 ordinary prompts"
        found.append(row("Benjamini-Hochberg, false share", said, "≤ 0.05", false_share))
        if memorized:
            found.append(row("Benjamini-Hochberg, power", f"{said}, four deviations higher", "–", power))
    few = []
    rng = np.random.default_rng(12)
    for _ in range(draws):
        scores = rng.normal(size=200) + 4 * (np.arange(200) < 5)
        few.append((benjamini_hochberg(conformal_p_values(scores, rng.normal(size=225))) <= 0.05)[:5].mean())
    found.append(row("Benjamini-Hochberg, power", "5 of 200 are memorized, 225 ordinary prompts", "–", few))
    for name, correlation in (("independent", 0.0), ("correlated by 0.8", 0.8)):
        rng, any_false = np.random.default_rng(13), []
        for _ in range(draws):
            z = correlation**0.5 * rng.normal() + (1 - correlation) ** 0.5 * rng.normal(size=200)
            any_false.append((false_discovery(norm.sf(z), 200) <= 0.05).any())
        found.append(row("Benjamini-Yekutieli, any false one", f"200 tests, {name}, all null", "≤ 0.05", any_false))
    return found


# Words


def corpus(rng: Generator, rows: int) -> list[tuple[list[str], int]]:
    """Captions of Zipf's words for groups of one to six pictures' captions, words independent of the group."""
    weights = 1 / np.arange(1, 401)
    ids = rng.choice(400, (rows, 8), p=weights / weights.sum())
    groups = np.repeat(np.arange(rows), rng.integers(1, 7, rows))[:rows]
    return [([f"w{i}" for i in words], int(g)) for words, g in zip(ids, groups, strict=True)]


def plant(rows: list[tuple[list[str], int]]) -> list[tuple[list[str], int]]:
    """One word in all captions of a picture, one word three times in a caption, a template of one picture."""
    shared = [([*words[:7], "planted"], 10_001) for words, _ in rows[:6]]
    repeated = [([*rows[7][0][:5], *["again"] * 3], rows[7][1])]
    slot = [(["one", "sentence", "with", f"{i}th", "slot"], 10_002) for i in range(6)]
    return [*rows[8:], *shared, *repeated, *slot]


def audited(rows: list[tuple[list[str], int]], folder: Path) -> dict[str, list[Any]]:
    """What the data audit reports of captions and the pictures that they go with."""
    lines = []
    for i, (words, picture) in enumerate(rows):
        key, text = str(picture).encode(), " ".join(words)
        far = (picture + 1) * 0x9E3779B97F4A7C15 % 2**64  # no two perceptual hashes are near
        line = {"row": i, "id": str(i), "caption": text, "text": text, "words": words, "file": key, "pixels": key}
        lines.append(line | {"perceptual": far, "embedding": bytes(1536)})
    with database(folder / "work") as connection:
        connection.register("given", pa.Table.from_pylist(lines, ROWS))
        connection.execute("CREATE TABLE items AS SELECT * FROM given")
        group_pictures(connection, [])
        collect_captions(connection)
        tests = {"shared words": shared_words, "repeated words": repeated_words, "templates": caption_templates}
        return {name: test(connection) for name, test in tests.items()}


def words(scale: float) -> list[Simulated]:
    found, rng = [], np.random.default_rng(14)
    with tempfile.TemporaryDirectory() as folder:
        nulls = [audited(corpus(rng, 600), Path(folder)) for _ in range(int(60 * scale) + 2)]
        planted = [audited(plant(corpus(rng, 600)), Path(folder)) for _ in range(int(20 * scale) + 2)]
    signs = {"shared words": "planted", "repeated words": "again", "templates": "one sentence with"}
    for name in signs:
        any_false = [len(result[name]) > 0 for result in nulls]
        found.append(row(f"{name}: any reported", "600 captions, words independent of pictures", "≤ 0.05", any_false))
    for name, sign in signs.items():
        there = [any(sign in t.word for t in result[name]) for result in planted]
        found.append(row(f"{name}: the planted one reported", "one planted", "–", there))
    return found


# Nearness


def generated(rng: Generator, names: Floats, known: Floats, count: int) -> Floats:
    """Distances of generated pictures to pictures: small to those of the group that each was made from."""
    made = rng.choice(known, count)
    return rng.random((count, len(names))) + np.where(made[:, None] == names, 0, 2)


def nearness_p(
    rng: Generator, copies: int, known: int, *, paired: bool, grouped: bool, memorized: bool = False
) -> float:
    """The p-value of 20 groups of so many variants a set, where the generator knows some of either or of training."""
    training = np.repeat(np.arange(20), copies)
    names = np.concatenate([training, training + 100])
    side = 0 if memorized else 100 * (rng.random(known) < 0.5)
    distances = generated(rng, names, side + rng.choice(20, known, replace=False), 60)
    half = len(training)
    test = nearness_test(
        distances[:, :half],
        distances[:, half:],
        paired=paired,
        groups=names if grouped else None,
        rounds=199,
        seed=int(rng.integers(2**31)),
    )
    return test.p_value


def nearness(scale: float) -> list[Simulated]:
    draws, found = int(200 * scale), []
    cases = [(1, 1, True), (20, 1, True), (5, 10, True), (20, 1, False), (5, 10, False)]
    for paired, kind in ((False, "held-out pictures"), (True, "mirror images")):
        for copies, known, grouped in cases:
            rng = np.random.default_rng(15)
            hits = [nearness_p(rng, copies, known, paired=paired, grouped=grouped) <= 0.05 for _ in range(draws)]
            how = "groups exchanged" if grouped else "variants exchanged singly: wrong"
            truth = f"knows {known} of 40 groups, of either set; {copies} variants each"
            found.append(row(f"{kind}, {how}: p ≤ 0.05", truth, "≤ 0.05", hits))
        for known in (4, 6, 10):
            rng = np.random.default_rng(16)
            hits = [
                nearness_p(rng, 5, known, paired=paired, grouped=True, memorized=True) <= 0.05 for _ in range(draws)
            ]
            found.append(row(f"{kind}, power", f"knows {known} of 20 training groups", "–", hits))
    return found


# Attacks


def fisher_p(hits: int, others: int, n: int, m: int, known: dict[tuple[int, int, int, int], float]) -> float:
    key = (hits, others, n, m)
    if key not in known:
        known[key] = float(fisher_exact([[hits, n - hits], [others, m - others]], alternative="greater").pvalue)
    return known[key]


def attacks(scale: float) -> list[Simulated]:
    draws, found = int(5000 * scale), []
    known: dict[tuple[int, int, int, int], float] = {}

    def rejects(rng: Generator, n: int, attacked: float, control: float, twins: int = 1) -> bool:
        hits = twins * rng.binomial(n // twins, attacked)
        harder = max(rng.binomial(n, control, 2))
        return fisher_p(hits, harder, n, n, known) <= 0.05

    for n in (6, 12, 36):
        for rate in (0.05, 0.3):
            rng = np.random.default_rng(17)
            hits = [rejects(rng, n, rate, rate) for _ in range(draws)]
            found.append(
                row(f"{n} pictures and {n} of either control: p ≤ 0.05", f"all come back at {rate}", "≤ 0.05", hits)
            )
    rng = np.random.default_rng(17)
    hits = [rejects(rng, 36, 0.3, 0.3, twins=4) for _ in range(draws)]
    found.append(row("36 pictures that are 9 times four duplicates: p ≤ 0.05", "all come back at 0.3", "≤ 0.05", hits))
    for n in (6, 12, 36):
        for attacked in (0.25, 0.5, 0.8):
            rng = np.random.default_rng(18)
            hits = [rejects(rng, n, attacked, 0.02) for _ in range(draws)]
            truth = f"{attacked} come back, 0.02 of the controls"
            found.append(row(f"{n} pictures and {n} of either control: power", truth, "–", hits))
    rng, alike, unlike = np.random.default_rng(19), [], []
    for _ in range(draws):
        attacked, control = (rng.random((20, 5, 4)) < 0.03 for _ in range(2))
        back, beside = (copied.any(axis=(1, 2)).sum() for copied in (attacked, control))
        alike.append(fisher_p(int(back), int(beside), 20, 20, known) <= 0.05)
        unlike.append(fisher_p(int(back), int(control.mean(axis=(1, 2)).sum()), 20, 20, known) <= 0.05)
    truth = "20 pictures, five times four generations, 0.03 are copies"
    found.append(row("any of 20 generations for both", truth, "≤ 0.05", alike))
    found.append(row("any of 20 against the control's mean rate: wrong", truth, "≤ 0.05", unlike))
    return found


# Locality


def localities(scale: float) -> list[Simulated]:
    from unmemorize.localize.locality import mean_over, mean_over_pairs  # reads in the model libraries

    draws, found = int(300 * scale), []
    for n in (5, 10, 30):
        rng, pairs, singles = np.random.default_rng(20), [], []
        # The mean distance of two points of a normal distribution in 8 dimensions: √2 times the mean of a chi variable.
        truth = 2 * np.exp(gammaln(4.5) - gammaln(4.0))
        for _ in range(draws):
            points = rng.normal(size=(n, 8))
            pairs.append(holds(mean_over_pairs(pdist(points)), truth))
            singles.append(holds(mean_over(rng.exponential(size=n)), 1.0))
        found.append(row(f"mean over pairs of {n} embeddings", f"{truth:.2f}", "0.95", pairs))
        found.append(row(f"mean over {n} embeddings", "1.00, of a skewed value", "0.95", singles))
    return found


@dataclass(frozen=True)
class Section:
    """A simulation, and what stands around its table."""

    title: str
    work: Callable[[float], list[Simulated]]
    before: str
    after: str


SECTIONS = (
    Section(
        "Rates",
        rates,
        "Copy rates have Clopper and Pearson's interval over pictures or clusters (`rate_interval`). How often the "
        "interval holds the true rate:",
        "All trials of a unit count as one, the worst case. Where seeds disagree the interval therefore holds the "
        "rate more often than promised: it is wide, never too narrow. Units have to be unrelated: the last row "
        "counts duplicates as pictures of their own, and **its interval is too narrow**. Units of unequal size are "
        "replaced by an effective number of equal ones, an approximation that held here.",
    ),
    Section(
        "Rankings",
        rankings,
        "AUC and the true positive rate at 1% false positives have percentile bootstraps over clusters of related "
        "prompts (`cluster_bootstrap`, here 200 rounds instead of 1,000). Scores are normal, half of their variance "
        "is the cluster's. The text-only control is scored out of fold.",
        "The interval of the AUC is somewhat too narrow with eight or thirty clusters of either kind, and holds as "
        "often as promised with 150 unrelated prompts. **The interval of the true positive rate at 1% is not good "
        "with fewer than several hundred unrelated negatives**: the threshold is then the highest one or two of "
        "them, and resampling cannot know what a higher one would be. Read it as an order of size. The interval of "
        "the text-only AUC leaves out that another draw of prompts would train another classifier; in these few "
        "draws it held the truth less often than promised.",
    ),
    Section(
        "Quality",
        quality,
        "KID, FID and alignment before and after a change have percentile bootstraps over clusters of prompts "
        "(`compare`, here 200 rounds instead of 500). Features have five dimensions; 40 prompts, two seeds, 60 real "
        "pictures.",
        "**The interval of FID itself does not hold the FID**: FID falls with the number of pictures, and "
        "resampling with repeats raises it once more, so the interval lies above. A change of FID compares two "
        "values that are raised alike, and its interval holds zero more often than promised. The relative change of "
        "KID is a ratio of numbers near zero where pictures are as good as real ones: its interval is then so wide "
        "that it says nothing. Alignment is a mean, and its interval is a little too narrow with ten prompts.",
    ),
    Section(
        "Calibration",
        calibration,
        "Conformal p-values and thresholds (`metrics/calibrate.py`): how often an ordinary prompt raises an alarm.",
        "With one score a prompt the promise is kept, also where ordinary prompts are related: what relations cost "
        "is that the alarms of one calibration set vary more, and the interval of the check is wide enough for "
        "that. **Scores of several seeds of one prompt are not independent**: 25 prompts at four seeds seem to be a "
        "hundred scores and give two and a half times the false alarms promised. With 225 prompts the error is "
        "small.",
    ),
    Section(
        "Many tests",
        discoveries,
        "Benjamini and Hochberg over the conformal p-values of one calibration set picks suspected prompts; "
        "Benjamini and Yekutieli adjusts the data audit's words. The share of false ones among those picked, none "
        "picked counting as 0; where nothing is memorized, that is the probability of any false pick.",
        "Both keep their level. A conformal p-value is 1 / (n + 1) at least: with 225 ordinary prompts, five "
        "memorized ones among 200 cannot be picked however high they score. More ordinary prompts buy power. "
        "Benjamini and Yekutieli stays far below its level: the price of holding under any dependence.",
    ),
    Section(
        "Words",
        words,
        "The data audit over corpora of captions with Zipf's word frequencies (400 words, eight a caption), whose "
        "pictures have one to six captions each: duplicates, and nothing to find. Planted: a word in six captions "
        "of one picture, a word three times in one caption, a sentence with six words in its slot. A corpus counts "
        "once, however much is reported of it.",
        "Where nothing is to be found, at most 0.05 of the corpora may have a report: a test whose row is above "
        "that takes chance for a trigger, and its p-values are too small. What was planted was always reported. "
        "Words are independent here; real captions repeat words as language does (black and white), and a report of "
        "those says that they are repeated beyond chance, not that they do harm.",
    ),
    Section(
        "Nearness",
        nearness,
        "The permutation test of whether generated pictures are nearer to training pictures than to held-out ones "
        "(`nearness_test`, 199 exchanges): 60 generated pictures, 20 groups of near-duplicates a set.",
        "With groups exchanged as one the level holds. Exchanged singly, one picture that is there twenty times is "
        "taken for twenty findings. One group alone has no p below one half, and four groups are at the edge of "
        "0.05: the test shows that a model gives back several pictures, not one. Groups come from pixels, the copy-"
        "detection network and the masks of templates; **variants of a layout without a mask whose varying part is "
        "large are not recognised**, and p is then too small.",
    ),
    Section(
        "Attacks",
        attacks,
        "Whether an attack brings back more pictures than its controls: Fisher's exact test over pictures, one-"
        "sided, against the control that comes back more often. A picture counts once, by any of its generations, "
        "and so does a control.",
        "The test errs on the safe side, most of all with few pictures and against the harder of two controls: six "
        "pictures show little but an attack that brings back nearly all. **Duplicates among the attacked pictures "
        "have to be counted once**, or the level is lost. If attacked pictures are counted by any of their "
        "generations and the control by its mean rate, nearly every attack looks like an extraction.",
    ),
    Section(
        "Locality",
        localities,
        "Mean distances and overlaps of embeddings (`unmemorize locality`) have percentile bootstraps over embeddings.",
        "Means over pairs hold nearly as often as promised. **Means over few embeddings of a skewed value do not**: "
        "with ten, 0.85 instead of 0.95, and with five less. They are overlaps of two methods; read them as an "
        "order of size.",
    ),
)

HEAD = """# Do the statistics hold?

Intervals and tests that the tool prints, simulated where the truth is known: nulls with duplicated pictures, related
prompts and seeds that agree. Of an interval, the share of draws in which it holds the truth; of a test, the share in
which it raises an alarm, false under a null and true (its power) under an effect. Errors are standard errors of the
simulation. `python benchmarks statistics` makes this page from fixed seeds. Not simulated: the change between two
runs that `unmemorize compare` prints, a bootstrap of a mean like that of alignment below.
"""


def cases(options: Options) -> Cases:
    """Every section."""

    def measure(section: Section, rows: dict[str, Any]) -> list[dict[str, Any]]:
        return [asdict(row) for row in section.work(options.scale)]

    return Cases({"scale": options.scale}, {section.title: partial(measure, section) for section in SECTIONS})


def page(numbers: dict[str, Any]) -> Iterator[str]:
    """Every section's table between its texts."""
    yield HEAD.rstrip()
    for section in SECTIONS:
        if section.title in numbers["settings"]:
            yield from ("", f"## {section.title}", "", fill(section.before, WIDTH), "")
            rows = []
            for r in numbers["settings"][section.title]:
                measured = f"{r['measured']:.3f} ± {r['error']:.3f}"
                rows.append([r["what"], r["truth"], f"{r['draws']:,}", r["promised"], measured])
            yield from table("what | truth | draws | promised | measured", rows)
            yield from ("", fill(section.after, WIDTH))


STUDY = Study(title="", about="", page=page, measure=cases, options={"scale": 1.0}, path=Path("docs/statistics.md"))
