"""Exact tests of counts, and how many units it takes to say that a rate is small."""

from __future__ import annotations

from scipy.stats import binom, hypergeom

from unmemorize.core.records import Interval
from unmemorize.metrics.ranking import rate_interval

MOST = 10_000  # units; a bound that takes more is called undecidable


def interval(rate: float, units: int) -> Interval:
    """`rate_interval` of an observed rate over so many units, one trial each.

    Raises:
        ValueError: There are no units.
    """
    return rate_interval([rate] * units, [1] * units)


def more_often(hits: int, units: int, other_hits: int, other_units: int) -> float:
    """One-sided p-value that the first units are hit more often than the others, given the hits of both together.

    Paper: Fisher 1935, the exact test of a 2 × 2 table.
    """
    return float(hypergeom.sf(hits - 1, units + other_units, hits + other_hits, units))


def above(hits: int, units: int, rate: float) -> float:
    """One-sided p-value that units are hit at more than `rate`: the binomial probability of so many hits or more."""
    return float(binom.sf(hits - 1, units, rate))


def units_to_decide(bound: float, rate: float = 0.0) -> int | None:
    """The fewest units at which the 95% interval of an observed `rate` ends at or below `bound`; None if none do.

    36 units without a hit decide a bound of 10%.
    """
    if rate >= bound or interval(rate, MOST).high > bound:
        return None
    too_few, enough = 0, MOST
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if interval(rate, middle).high <= bound:
            enough = middle
        else:
            too_few = middle
    return enough
