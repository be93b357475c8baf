"""The ranked table: one row per prompt, its scores, its pictures grouped by the training picture they resemble."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain, groupby
from statistics import fmean, pstdev

from unmemorize.core.shards import Row
from unmemorize.report.schema import Run

COPIES = ("verbatim", "template")
SEVERITY = {"verbatim": 0, "template": 1, "none": 2, "not compared": 3, "not generated": 4}
NOT_COMPARED = dict.fromkeys(("caption", "distance", "ratio", "mirrored")) | {"nearest": "", "verdict": "not compared"}


@dataclass(frozen=True)
class Shot:
    """One generated picture and the verdict on it; `map` is a picture of where its memory shows."""

    seed: int
    image: str
    distance: float | None
    ratio: float | None
    verdict: str
    mirrored: bool = False
    map: str = ""


@dataclass(frozen=True)
class Group:
    """The pictures of one prompt that have the same nearest training picture, or none to be compared with."""

    nearest: str
    caption: str | None
    shots: tuple[Shot, ...]

    @property
    def copied(self) -> bool:
        """Whether one of the pictures is a copy."""
        return any(shot.verdict in COPIES for shot in self.shots)


@dataclass(frozen=True)
class Word:
    """A part of a prompt: a word with its `share` of the highest significance there, or None between words."""

    text: str
    share: float | None
    significance: float = 0.0


@dataclass(frozen=True)
class Omission:
    """How many of `pictures` copy the same training picture with the whole prompt, and without `word`."""

    word: str
    pictures: int
    copies_with: int
    copies_without: int


@dataclass(frozen=True)
class Prompt:
    """A row of the table. `score` is the mean over seeds, `bar` its share of the highest score in the run."""

    rank: int
    id: str
    prompt: str
    kind: str | None
    copies: int | None
    memorable: bool | None
    score: float | None
    spread: float | None
    bar: float
    groups: tuple[Group, ...]
    verdict: str
    p_value: float | None = None
    q_value: float | None = None
    scores: tuple[float, ...] = ()
    words: tuple[Word, ...] = ()
    shares: dict[str, float] = field(default_factory=dict)
    omission: Omission | None = None
    curve: tuple[float, ...] = ()
    cluster: str | None = None

    @property
    def copied(self) -> bool:
        """Whether one of its pictures is a copy."""
        return self.verdict in COPIES

    @property
    def shots(self) -> tuple[Shot, ...]:
        """All its pictures, by seed."""
        shots = chain.from_iterable(group.shots for group in self.groups)
        return tuple(sorted(shots, key=lambda shot: shot.seed))


def method_of(run: Run) -> str | None:
    """The method that the table ranks by: the summary's, or the first that has scores."""
    if run.summary.detector is not None:
        return run.summary.detector.method
    return run.detect[0]["method"] if run.detect else None


def rank_prompts(run: Run) -> list[Prompt]:
    """Prompts, highest mean score first; equal scores by id, prompts without a score last."""
    scores, groups, curves = _scores(run), _groups(run), _curves(run)
    calibrated = {row["id"]: row for row in run.calibrated}
    explained = {row["id"]: row for row in run.explain}
    means = {key: fmean(values) for key, values in scores.items()}
    lowest = min([0.0, *means.values()])
    span = max([0.0, *means.values()]) - lowest or 1.0
    ordered = sorted(run.prompts, key=lambda row: (-means.get(row["id"], -math.inf), row["id"]))
    prompts = []
    for rank, row in enumerate(ordered, start=1):
        key = row["id"]
        by_seed = scores.get(key, [])
        own_groups = groups.get(key, ())
        tested = calibrated.get(key, {})
        explanation = explained.get(key)
        prompts.append(
            Prompt(
                **row,
                rank=rank,
                score=means.get(key),
                spread=pstdev(by_seed) if len(by_seed) > 1 else None,
                bar=(means.get(key, lowest) - lowest) / span,
                groups=own_groups,
                verdict=_worst(own_groups),
                p_value=tested.get("p_value"),
                q_value=tested.get("q_value"),
                scores=tuple(by_seed),
                words=_words(row["prompt"], explanation) if explanation else (),
                shares=_shares(explanation) if explanation else {},
                omission=_omission(row["prompt"], explanation) if explanation else None,
                curve=curves.get(key, ()),
            )
        )
    return prompts


def _scores(run: Run) -> dict[str, list[float]]:
    method = method_of(run)
    scores = defaultdict(list)
    for row in run.detect:
        if row["method"] == method and row["score"] is not None and math.isfinite(row["score"]):
            scores[row["id"]].append(row["score"])
    return dict(scores)


def _words(prompt: str, row: Row) -> tuple[Word, ...]:
    """The prompt cut into words and what stands between them."""
    highest = max(0.0, *row["significance"]) or 1.0
    parts = []
    end = 0
    for start, stop, value in zip(row["starts"], row["stops"], row["significance"], strict=True):
        parts.append(Word(prompt[end:start], None))
        parts.append(Word(prompt[start:stop], value / highest, value))
        end = stop
    parts.append(Word(prompt[end:], None))
    return tuple(part for part in parts if part.text)


def _shares(row: Row) -> dict[str, float]:
    """The shares of significance on words and on special tokens; empty where these were not recorded."""
    if row["padding"] is None:
        return {}
    parts = {"words": sum(row["significance"])} | {name: row[name] for name in ("begin", "end", "padding")}
    total = sum(parts.values()) or 1.0
    return {name: value / total for name, value in parts.items()}


def _omission(prompt: str, row: Row) -> Omission | None:
    place = row["omitted"]
    if place is None:
        return None
    word = prompt[row["starts"][place] : row["stops"][place]]
    return Omission(word, row["pictures"], row["copies_with"], row["copies_without"])


def _curves(run: Run) -> dict[str, tuple[float, ...]]:
    """The magnitude at each sampling step, mean over a prompt's pictures, where it was recorded."""
    by_prompt: dict[str, list[list[float]]] = defaultdict(list)
    for row in run.images:
        if row["curve"]:
            by_prompt[row["id"]].append(row["curve"])
    means = {}
    for key, curves in by_prompt.items():
        means[key] = tuple(fmean(step) for step in zip(*curves, strict=False))
    return means


def _groups(run: Run) -> dict[str, tuple[Group, ...]]:
    pictures = run.verify or [row | NOT_COMPARED for row in run.images]
    maps = {(row["id"], row["seed"]): row["map"] for row in run.regions}
    ordered = sorted(pictures, key=lambda row: (row["id"], row["nearest"], row["seed"]))
    by_prompt: dict[str, list[Group]] = defaultdict(list)
    for (key, nearest), rows in groupby(ordered, key=lambda row: (row["id"], row["nearest"])):
        members = list(rows)
        shots = []
        for row in members:
            values = (row["seed"], row["image"], row["distance"], row["ratio"], row["verdict"])
            shots.append(Shot(*values, mirrored=bool(row["mirrored"]), map=maps.get((key, row["seed"]), "")))
        by_prompt[key].append(Group(nearest, members[0]["caption"], tuple(shots)))
    return {key: tuple(sorted(groups, key=lambda g: g.shots[0].seed)) for key, groups in by_prompt.items()}


def _worst(groups: Iterable[Group]) -> str:
    shots = chain.from_iterable(group.shots for group in groups)
    verdicts = [shot.verdict for shot in shots]
    return min(verdicts, key=lambda verdict: SEVERITY.get(verdict, 2), default="not generated")
