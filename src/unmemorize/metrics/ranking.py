"""How well a score ranks memorized prompts above ordinary ones, and how well text alone does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta, rankdata
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_curve
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from unmemorize.core.errors import NotApplicable
from unmemorize.core.records import Interval

TAIL = 0.025  # on either side of a 95% interval
TAILS = (TAIL, 1 - TAIL)
MIN_CLUSTERS = 5  # with fewer unrelated prompts an interval would look narrower than it is
Floats = NDArray[np.float64]
Statistic = Callable[[Floats, NDArray[np.bool_]], float]


def auc(scores: Floats, positive: NDArray[np.bool_]) -> float:
    """Area under the ROC curve, with higher scores for positives; never flipped."""
    return float(areas(scores[:, None], positive)[0])


def tpr_at_fpr(scores: Floats, positive: NDArray[np.bool_], fpr: float = 0.01) -> float:
    """The highest true positive rate whose false positive rate is at most `fpr`."""
    return float(rates(scores[:, None], positive, fpr)[0])


def roc(scores: Floats, positive: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """False and true positive rates over all thresholds."""
    false, true, _ = roc_curve(positive, scores)
    return false, true


def cluster_bootstrap(
    statistic: Statistic,
    scores: Floats,
    positive: NDArray[np.bool_],
    clusters: Sequence[str],
    *,
    rounds: int = 1000,
    seed: int = 0,
) -> Interval:
    """A statistic with its 95% percentile interval, resampling whole clusters of related prompts.

    Raises:
        NotApplicable: There are fewer than five clusters of either class.
    """
    samples = _resampled(positive, clusters, rounds, seed)
    low, high = np.quantile([statistic(scores[rows], positive[rows]) for rows in samples], TAILS)
    return Interval(statistic(scores, positive), float(low), float(high))


def _resampled(
    positive: NDArray[np.bool_], clusters: Sequence[str], rounds: int, seed: int
) -> Iterator[NDArray[np.int64]]:
    """Rows of as many clusters as there are, drawn with replacement; draws without both classes are left out.

    Raises:
        NotApplicable: There are fewer than five clusters of either class.
    """
    rng = np.random.default_rng(seed)
    names, member = np.unique(np.asarray(clusters), return_inverse=True)
    if min(len(np.unique(member[positive])), len(np.unique(member[~positive]))) < MIN_CLUSTERS:
        raise NotApplicable(f"a ranking needs {MIN_CLUSTERS} unrelated prompts of either kind, memorized and ordinary")
    rows = [np.flatnonzero(member == c) for c in range(len(names))]
    for _ in range(rounds):
        sample = np.concatenate([rows[c] for c in rng.integers(len(rows), size=len(rows))])
        if positive[sample].any() and not positive[sample].all():
            yield sample


def areas(scores: Floats, positive: NDArray[np.bool_]) -> Floats:
    """`auc` of several methods at once: `scores` is (n, methods), the areas are (methods,)."""
    count = int(positive.sum())
    ranks = rankdata(scores, axis=0)[positive].sum(axis=0)
    pairs_in_order: Floats = ranks - count * (count + 1) / 2  # a tie counts one half
    return pairs_in_order / (count * (len(positive) - count))


def rates(scores: Floats, positive: NDArray[np.bool_], fpr: float = 0.01) -> Floats:
    """`tpr_at_fpr` of several methods at once: `scores` is (n, methods), the rates are (methods,)."""
    ordinary = np.sort(scores[~positive], axis=0)
    alarms = int(fpr * len(ordinary) + 1e-9)  # a product that is a whole number may come out a little below it
    bar = ordinary[-alarms - 1] if alarms < len(ordinary) else -np.inf
    shares: Floats = (scores[positive] > bar).mean(axis=0)
    return shares


@dataclass(frozen=True)
class Ranked:
    """How well one of several methods ranks the same prompts.

    Attributes:
        auc: The area under the ROC curve.
        tpr: The highest true positive rate whose false positive rate is at most 1%.
        behind: The area of the method with the largest one minus this one's, resampled together.
    """

    auc: Interval
    tpr: Interval
    behind: Interval


def ranked_together(
    scores: Floats, positive: NDArray[np.bool_], clusters: Sequence[str], *, rounds: int = 1000, seed: int = 0
) -> list[Ranked]:
    """Rank the same prompts by several methods, `scores` (n, methods): paired, since all see the same draws.

    Intervals are `cluster_bootstrap`'s; of fewer than five clusters of either class there are none, and limits are NaN.
    The method with the largest area is the best of these prompts: a difference to it is not below 0.
    """
    area, rate = areas(scores, positive), rates(scores, positive)
    best = int(area.argmax())
    try:
        samples = list(_resampled(positive, clusters, rounds, seed))
        drawn_areas = np.array([areas(scores[rows], positive[rows]) for rows in samples])
        drawn_rates = np.array([rates(scores[rows], positive[rows]) for rows in samples])
    except NotApplicable:
        drawn_areas = drawn_rates = np.full((1, len(area)), np.nan)
    drawn_behind = drawn_areas[:, [best]] - drawn_areas
    columns = [
        _intervals(value, drawn)
        for value, drawn in ((area, drawn_areas), (rate, drawn_rates), (area[best] - area, drawn_behind))
    ]
    return [Ranked(*intervals) for intervals in zip(*columns, strict=True)]


def _intervals(values: Floats, drawn: Floats) -> list[Interval]:
    """Values (methods,) with the limits of what was drawn for them, (rounds, methods)."""
    limits = np.quantile(drawn, TAILS, axis=0)
    return [Interval(*map(float, row)) for row in zip(values, *limits, strict=True)]


def combined_scores(scores: Floats, positive: NDArray[np.bool_], clusters: Sequence[str]) -> Floats:
    """One score of several methods' (n, methods), fitted on one half of the clusters and given to the other half.

    Logistic regression of standardized scores, each half's from the other's labels: no prompt has a part in the weights
    that score it.

    Raises:
        NotApplicable: There are fewer than five clusters of either class.
    """
    groups = np.unique(np.asarray(clusters), return_inverse=True)[1]
    if min(len(np.unique(groups[positive])), len(np.unique(groups[~positive]))) < MIN_CLUSTERS:
        raise NotApplicable(f"a combination needs {MIN_CLUSTERS} unrelated prompts of either kind")
    halves = StratifiedGroupKFold(2, shuffle=True, random_state=0)
    classifier = make_pipeline(StandardScaler(), LogisticRegression())
    combined: Floats = cross_val_predict(
        classifier, scores, positive, groups=groups, cv=halves, method="decision_function"
    )
    return combined


def rate_interval(hits: ArrayLike, trials: ArrayLike, clusters: Sequence[str] | None = None) -> Interval:
    """Σ hits / Σ trials with its exact 95% interval over the units (pictures, prompts) that the trials belong to.

    Clopper and Pearson's interval, in which a unit counts once, by the share of its trials that were hits: as if all
    trials of a unit came out alike, which is the worst case. So more trials of the same units narrow nothing, and one
    hit more never lowers a limit. Units with unequal trials count as (Σ n)² / Σ n² equal ones.

    Paper: Clopper and Pearson 1934.
    Differs: the count of hits need not be whole (the limits are quantiles of beta distributions, which take any count).

    Args:
        hits: One count a unit.
        trials: One count a unit.
        clusters: The cluster of each unit, where units are related (prompts that share a word): a cluster then counts
            once, as its units' trials together.

    Raises:
        ValueError: There are no trials.
    """
    h, n = np.asarray(hits, float), np.asarray(trials, float)
    if clusters is not None:
        member = np.unique(np.asarray(clusters), return_inverse=True)[1]
        h, n = np.bincount(member, h), np.bincount(member, n)
    if not n.sum():
        raise ValueError("expected at least one trial, got none")
    value = float(h.sum() / n.sum())
    units = float(n.sum() ** 2 / (n**2).sum())
    hit, missed = value * units, (1 - value) * units
    low = float(beta.ppf(TAIL, hit, missed + 1)) if value > 0 else 0.0
    high = float(beta.ppf(1 - TAIL, hit + 1, missed)) if value < 1 else 1.0
    return Interval(value, low, high)


def share_interval(hits: ArrayLike) -> Interval:
    """`rate_interval` of a table: which of a unit's trials were hits, (units, trials), true or false, 1 or 0.

    Raises:
        ValueError: There are no trials.
    """
    table = np.asarray(hits)
    return rate_interval(table.sum(axis=1).tolist(), [table.shape[1]] * len(table))


def text_scores(prompts: Sequence[str], positive: NDArray[np.bool_], clusters: Sequence[str]) -> Floats:
    """Out-of-fold scores of a classifier that sees the text alone: the control beside every detector.

    Words and word pairs, logistic regression, five folds that never split a cluster, averaged over five shuffles. An
    interval of its AUC is that of these prompts alone; where prompts were chosen to balance it, as the testbed's plan
    was, it is not that of other prompts drawn in the same way.

    Raises:
        NotApplicable: There are fewer than five prompts or clusters of either kind.
    """
    labels = np.asarray(positive)
    groups = np.unique(np.asarray(clusters), return_inverse=True)[1]
    if min(len(np.unique(groups[labels])), len(np.unique(groups[~labels]))) < MIN_CLUSTERS:
        raise NotApplicable(f"the text-only control needs {MIN_CLUSTERS} unrelated prompts of either kind")
    features = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\S+")
    classifier = make_pipeline(features, LogisticRegression(C=10.0))
    folds = [StratifiedGroupKFold(5, shuffle=True, random_state=s) for s in range(5)]
    runs = [
        cross_val_predict(classifier, list(prompts), labels, groups=groups, cv=f, method="predict_proba")[:, 1]
        for f in folds
    ]
    mean: Floats = np.mean(runs, axis=0)
    return mean
