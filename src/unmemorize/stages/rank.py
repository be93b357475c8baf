"""How well each detector tells memorized prompts from ordinary ones, by what they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from unmemorize.core.crew import Crew
from unmemorize.core.errors import NotApplicable
from unmemorize.core.records import Interval
from unmemorize.core.run import Progress
from unmemorize.core.shards import Row, write_rows
from unmemorize.data.source import Prompt, clusters_of
from unmemorize.metrics.ranking import Floats, Ranked, combined_scores, ranked_together, text_scores
from unmemorize.report.bench import COMBINED, EVERY, RANKING, TEXT
from unmemorize.stages.inputs import Inputs
from unmemorize.stages.stage import Stage
from unmemorize.stages.trial import trials


@dataclass(frozen=True)
class Group:
    """Memorized prompts of one sort beside ordinary ones, by position in the list."""

    name: str
    memorized: tuple[int, ...]
    ordinary: tuple[int, ...]


def groups_of(prompts: Sequence[Prompt]) -> list[Group]:
    """All that are labelled; then each kind, and each number of copies of it, beside all ordinary prompts.

    Where ordinary prompts are of several kinds, all memorized prompts stand beside each of them, too. Prompts without a
    label are memorized to an unknown degree: they are in the groups of their kind alone.
    """
    memorized = [i for i, prompt in enumerate(prompts) if prompt.memorable]
    ordinary = [i for i, prompt in enumerate(prompts) if prompt.memorable is False]
    groups = [Group(EVERY, tuple(memorized), tuple(ordinary))]
    sorts: dict[tuple[str, int | None], list[int]] = {}
    for i, prompt in enumerate(prompts):
        if prompt.memorable is not False and prompt.kind:
            sorts.setdefault((prompt.kind, prompt.copies), []).append(i)
    doses = [kind for kind, _ in sorts]
    for (kind, copies), rows in sorts.items():
        dose = f"{copies} cop{'y' if copies == 1 else 'ies'}"
        name = kind if doses.count(kind) == 1 else f"{kind}, {dose}"
        groups.append(Group(name, tuple(rows), tuple(ordinary)))
    kinds = list(dict.fromkeys(prompts[i].kind for i in ordinary))
    if len(kinds) > 1:
        for beside in kinds:
            own = tuple(i for i in ordinary if prompts[i].kind == beside)
            groups.append(Group(f"{EVERY}, beside {beside or 'other'}", tuple(memorized), own))
    return groups


def _work(inputs: Inputs, run: Path, progress: Progress, crew: Crew) -> None:
    """Write `scores/ranking.parquet`: one row a group and method.

    Beside the methods stand their combination, whose weights come from the other half of the labels, and a classifier
    that sees the text alone.
    """
    prompts = inputs.prompts
    table = pq.read_table(run / "scores" / "detect.parquet")
    methods = list(inputs.spec.method)
    shape = (len(prompts), len(methods), inputs.spec.seeds)
    scores = table["score"].to_numpy().reshape(shape).mean(axis=2)
    spent = float(table["evaluations"].to_numpy().sum()) / (len(prompts) * inputs.spec.seeds)
    clusters = clusters_of(prompts)
    costs = trials(run) | {COMBINED: {"evaluations": spent, "ratio": None}, TEXT: {"evaluations": 0.0, "ratio": 0.0}}
    groups = groups_of(prompts)
    combined = _combined(scores, groups[0], clusters)
    rows: list[Row] = []
    for done, group in enumerate(groups):
        progress("rank", done, len(groups))
        places = [*group.memorized, *group.ordinary]
        positive = np.arange(len(places)) < len(group.memorized)
        own = [clusters[i] for i in places]
        columns = dict(zip(methods, scores[places].T, strict=True))
        if len(methods) > 1 and not np.isnan(combined[places]).any():
            columns[COMBINED] = combined[places]
        columns |= _text([prompts[i].text for i in places], positive, own)
        ranked = ranked_together(np.stack(list(columns.values()), axis=1), positive, own)
        for method, result in zip(columns, ranked, strict=True):
            cost = {name: costs[method][name] for name in ("evaluations", "ratio")}
            rows.append({"group": group.name, "method": method} | _sizes(group) | _numbers(result) | cost)
    write_rows(run / "scores" / "ranking.parquet", rows, RANKING)


def _combined(scores: Floats, every: Group, clusters: Sequence[str]) -> Floats:
    """The combination's scores of labelled prompts, NaN for others, and for all where there are too few."""
    combined = np.full(len(scores), np.nan)
    places = [*every.memorized, *every.ordinary]
    positive = np.arange(len(places)) < len(every.memorized)
    with suppress(NotApplicable):
        combined[places] = combined_scores(scores[places], positive, [clusters[i] for i in places])
    return combined


def _text(texts: Sequence[str], positive: NDArray[np.bool_], clusters: Sequence[str]) -> dict[str, Floats]:
    """The control's scores under its name; nothing where there are too few prompts to learn from."""
    try:
        return {TEXT: text_scores(texts, positive, clusters)}
    except NotApplicable:
        return {}


def _sizes(group: Group) -> Row:
    return {"memorized": len(group.memorized), "ordinary": len(group.ordinary)}


def _numbers(ranked: Ranked) -> Row:
    return _limits("auc", ranked.auc) | _limits("tpr", ranked.tpr) | _limits("behind", ranked.behind)


def _limits(name: str, interval: Interval) -> Row:
    """The value and the ends of its interval; None for an end that is not known."""
    low = None if math.isnan(interval.low) else interval.low
    high = None if math.isnan(interval.high) else interval.high
    return {name: interval.value, f"{name}_low": low, f"{name}_high": high}


RANK = Stage("rank", "ranking", _work)
