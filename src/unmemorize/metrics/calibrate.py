"""What ordinary prompts say: how high a score must be to be no chance, and how well that holds on others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu

from unmemorize.core.errors import NotApplicable
from unmemorize.core.records import Interval
from unmemorize.metrics.discovery import Floats, benjamini_hochberg
from unmemorize.metrics.ranking import rate_interval


def conformal_threshold(ordinary: Sequence[float], *, false_alarms: float = 0.01) -> float:
    """The score that a new ordinary prompt exceeds with probability at most `false_alarms`.

    The ⌈(n + 1)(1 − α)⌉-th smallest of n ordinary scores: exact in any finite sample if the new prompt is drawn like
    them, whatever their distribution (split conformal prediction).

    Raises:
        NotApplicable: There are too few ordinary scores for so small a share.
    """
    rank = math.ceil((len(ordinary) + 1) * (1 - false_alarms))
    if rank > len(ordinary):
        need = math.ceil(1 / false_alarms) - 1
        raise NotApplicable(f"a threshold for {false_alarms:.1%} false alarms needs {need} ordinary prompts or more")
    return float(np.sort(np.asarray(ordinary, float))[rank - 1])


def conformal_p_values(scores: Sequence[float], ordinary: Sequence[float]) -> Floats:
    """How many ordinary prompts score as high, as a p-value: (1 + #{ordinary ≥ score}) / (n + 1).

    A new ordinary prompt falls to p or below with probability at most p, whatever the scores' distribution. The
    smallest value there is, 1 / (n + 1), is what n ordinary prompts can say.

    Paper: Vovk et al. 2005, section 2.2; Bates et al. 2023, on testing for outliers.
    """
    known = np.sort(np.asarray(ordinary, float))
    below = np.searchsorted(known, np.asarray(scores, float), side="left").astype(float)
    return (1.0 + len(known) - below) / (len(known) + 1.0)


def set_p_value(scores: Sequence[float], ordinary: Sequence[float]) -> float:
    """How likely chance is to rank a set of pictures as high among ordinary ones: a one-sided Mann-Whitney test.

    Many pictures that each score a little high are evidence together. The p-value holds where both sets were drawn from
    one source and each of their pictures once.

    Paper: Mann and Whitney 1947; Dubiński et al. 2025 (CDI), on sets of pictures.
    Differs: the ranks of one score, to which nothing is fitted; CDI fits a combination on half of the pictures.
    """
    return float(mannwhitneyu(scores, ordinary, alternative="greater").pvalue)


@dataclass(frozen=True)
class Check:
    """How many false alarms there were among ordinary prompts that were left out of the calibration.

    `alarms` is the share of them at or below the level; `discoveries` and `false` count, over all folds, the prompts
    that false discovery control picked from the list and the fold together, and those of the fold among them.
    """

    alarms: Interval
    discoveries: int
    false: int


def check_calibration(
    scores: Sequence[float], ordinary: Sequence[float], clusters: Sequence[str], *, level: float = 0.05, folds: int = 10
) -> Check:
    """Calibrate on all folds of the ordinary prompts but one, test that one beside the list; every fold in turn.

    Related prompts (one cluster) are never on both sides.
    """
    known, fold = np.asarray(ordinary, float), _fold(clusters, folds)
    alarm = np.zeros(len(known), int)
    discoveries = false = 0
    for k in range(fold.max() + 1):
        fresh = fold == k
        p = conformal_p_values([*known[fresh], *scores], known[~fresh])
        picked = benjamini_hochberg(p) <= level
        alarm[fresh] = p[: fresh.sum()] <= level
        discoveries += int(picked.sum())
        false += int(picked[: fresh.sum()].sum())
    member = np.unique(np.asarray(clusters), return_inverse=True)[1]
    return Check(rate_interval(np.bincount(member, alarm), np.bincount(member)), discoveries, false)


def _fold(clusters: Sequence[str], folds: int) -> NDArray[np.int64]:
    """A fold for every prompt: its cluster's, dealt in turn."""
    order = {name: i % folds for i, name in enumerate(dict.fromkeys(clusters))}
    return np.array([order[name] for name in clusters])
