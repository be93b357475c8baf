"""How well a score ranks memorized prompts above ordinary ones, and how well text alone does."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline

from unmemorize.core.errors import NotApplicable
from unmemorize.core.records import Interval

TAIL = 0.025  # on either side of a 95% interval
MIN_CLUSTERS = 5  # with fewer unrelated prompts an interval would look narrower than it is
Floats = NDArray[np.float64]
Statistic = Callable[[Floats, NDArray[np.bool_]], float]


def auc(scores: Floats, positive: NDArray[np.bool_]) -> float:
    """Area under the ROC curve, with higher scores for positives; never flipped."""
    return float(roc_auc_score(positive, scores))


def tpr_at_fpr(scores: Floats, positive: NDArray[np.bool_], fpr: float = 0.01) -> float:
    """The highest true positive rate whose false positive rate is at most `fpr`."""
    false, true, _ = roc_curve(positive, scores, drop_intermediate=False)
    return float(true[false <= fpr].max())


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
    rng = np.random.default_rng(seed)
    names, member = np.unique(np.asarray(clusters), return_inverse=True)
    if min(len(np.unique(member[positive])), len(np.unique(member[~positive]))) < MIN_CLUSTERS:
        raise NotApplicable(f"a ranking needs {MIN_CLUSTERS} unrelated prompts of either kind, memorized and ordinary")
    rows = [np.flatnonzero(member == c) for c in range(len(names))]
    values = []
    for _ in range(rounds):
        sample = np.concatenate([rows[c] for c in rng.integers(len(rows), size=len(rows))])
        if positive[sample].any() and not positive[sample].all():
            values.append(statistic(scores[sample], positive[sample]))
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(statistic(scores, positive), float(low), float(high))


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
