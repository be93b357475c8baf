"""Two runs on one page, prompt by prompt: what a change to the model did."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unmemorize.core.errors import UserError
from unmemorize.core.records import Interval
from unmemorize.metrics.ranking import MIN_CLUSTERS, rate_interval
from unmemorize.metrics.related import related
from unmemorize.report.build import Evidence, evidence_loader, rendered, write_text
from unmemorize.report.pictures import Picture, picture_loader
from unmemorize.report.rows import COPIES, Prompt, rank_prompts
from unmemorize.report.schema import Run, load_run

SHOWN = 200  # pairs with pictures on the page
ROUNDS = 2000
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Pair:
    """One prompt in both runs."""

    prompt: str
    a: Prompt
    b: Prompt

    @property
    def scores(self) -> tuple[float, float] | None:
        """A's score and B's."""
        return None if self.a.score is None or self.b.score is None else (self.a.score, self.b.score)

    @property
    def rates(self) -> tuple[float, float] | None:
        """Shares of pictures that are copies, A's and B's, over seeds that both runs have compared."""
        a, b = _verdicts(self.a), _verdicts(self.b)
        both = a.keys() & b.keys()
        if not both:
            return None
        return sum(a[seed] for seed in both) / len(both), sum(b[seed] for seed in both) / len(both)

    @property
    def copies(self) -> float | None:
        """Difference of these shares, B - A."""
        return None if self.rates is None else self.rates[1] - self.rates[0]


@dataclass(frozen=True)
class Difference:
    """Means over `pairs` prompts, of which `change` is B - A.

    Its 95% interval is over `clusters` of related prompts; None where they are too few for one.
    """

    name: str
    a: float
    b: float
    change: float
    interval: Interval | None
    pairs: int
    clusters: int


def build_comparison(run_a: Path, run_b: Path, out: Path, *, evidence: Evidence = "full") -> Path:
    """Write the page that compares two runs; returns its path.

    Raises:
        UserError: A run is missing or damaged, or the two have no prompt in common.
    """
    a, b = load_run(run_a), load_run(run_b)
    pairs = pair_prompts(a, b)
    if not pairs:
        raise UserError(f"{run_a} and {run_b} have no prompt in common: compare runs over the same prompts")
    changed = sorted((p for p in pairs if p.a.copied or p.b.copied), key=lambda p: (p.copies or 0.0, p.a.rank))
    page = rendered(
        "compare.html.j2",
        a=a,
        b=b,
        pairs=pairs,
        differences=differences(pairs),
        changed=changed[:SHOWN],
        left_out=max(0, len(changed) - SHOWN),
        settings=_settings(a, b),
        shots=lambda run, prompt: _shots(run, prompt, evidence),
        evidence=evidence,
    )
    return write_text(out, page)


def pair_prompts(a: Run, b: Run) -> list[Pair]:
    """The prompts of both runs with the same text, in the order of the first's ranking."""
    in_b = {p.prompt: p for p in rank_prompts(b)}
    return [Pair(p.prompt, p, in_b[p.prompt]) for p in rank_prompts(a) if p.prompt in in_b]


def differences(pairs: Sequence[Pair]) -> list[Difference]:
    """What changed on average, over the prompts where both runs measured it."""
    clusters = _clusters(pairs)
    scores = _difference("score", [pair.scores for pair in pairs], clusters, _bootstrap)
    rates = _difference("copy rate", [pair.rates for pair in pairs], clusters, _exact)
    return [difference for difference in (scores, rates) if difference is not None]


def _clusters(pairs: Sequence[Pair]) -> list[str]:
    """The cluster of related prompts that each belongs to: the plan's where it is known, else by common words."""
    planned = [pair.a.cluster for pair in pairs if pair.a.cluster]
    return planned if len(planned) == len(pairs) else related([pair.prompt for pair in pairs])


def _difference(
    name: str,
    values: Sequence[tuple[float, float] | None],
    clusters: Sequence[str],
    interval: Callable[[Floats, Sequence[str]], Interval | None],
) -> Difference | None:
    """The mean difference over the prompts that have values; None if none has."""
    rows = [i for i, value in enumerate(values) if value is not None]
    if not rows:
        return None
    a, b = np.array([values[i] for i in rows]).T
    groups = [clusters[i] for i in rows]
    return Difference(
        name=name,
        a=float(a.mean()),
        b=float(b.mean()),
        change=float((b - a).mean()),
        interval=interval(b - a, groups),
        pairs=len(rows),
        clusters=len(set(groups)),
    )


def _bootstrap(changes: Floats, clusters: Sequence[str]) -> Interval | None:
    """The 95% percentile interval of their mean, resampling whole clusters; None for fewer than five."""
    member = np.unique(np.asarray(clusters), return_inverse=True)[1]
    sums, sizes = np.bincount(member, changes), np.bincount(member)
    if len(sums) < MIN_CLUSTERS:
        return None
    picks = np.random.default_rng(0).integers(len(sums), size=(ROUNDS, len(sums)))
    low, high = np.quantile(sums[picks].sum(axis=1) / sizes[picks].sum(axis=1), [0.025, 0.975])
    return Interval(value=float(changes.mean()), low=float(low), high=float(high))


def _exact(changes: Floats, clusters: Sequence[str]) -> Interval:
    """An interval of the mean of rates' changes, of at least 95%, which also has a width where no rate changed.

    What copies were gained and what were lost are rates, each with its exact interval; their difference is in between.
    """
    ones = np.ones(len(changes))
    gained = rate_interval(changes.clip(min=0), ones, clusters)
    lost = rate_interval((-changes).clip(min=0), ones, clusters)
    return Interval(value=float(changes.mean()), low=gained.low - lost.high, high=gained.high - lost.low)


def _verdicts(prompt: Prompt) -> dict[int, bool]:
    return {shot.seed: shot.verdict in COPIES for shot in prompt.shots if shot.verdict != "not compared"}


def _settings(a: Run, b: Run) -> list[tuple[str, object, object]]:
    """What the two runs were asked for differently; the model first, though it may be the same."""
    rows: list[tuple[str, object, object]] = [
        ("model", a.record.model.get("name"), b.record.model.get("name")),
        ("fingerprint", a.record.model.get("fingerprint"), b.record.model.get("fingerprint")),
    ]
    for key in a.record.spec | b.record.spec:
        of_a, of_b = a.record.spec.get(key), b.record.spec.get(key)
        if key != "model" and of_a != of_b:
            rows.append((key, of_a, of_b))
    return rows


def _shots(run: Run, prompt: Prompt, evidence: Evidence) -> Iterator[tuple[str, str, Picture | None]]:
    """A prompt's pictures as (label, verdict, picture or None); copies as far as `evidence` allows."""
    picture, evidence_picture = picture_loader(run.path), evidence_loader(run.path, evidence)
    for shot in prompt.shots:
        load = evidence_picture if shot.verdict in COPIES else picture
        yield f"seed {shot.seed}", shot.verdict, load(shot.image)
    for group in prompt.groups:
        if group.nearest and group.copied:
            yield "training picture", "", evidence_picture(group.nearest)
