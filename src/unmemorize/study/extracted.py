"""An attack's numbers as rows, and what the rows add up to beside their controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from unmemorize.attack.extraction import Extraction
from unmemorize.core.criteria import Criterion
from unmemorize.core.groups import ATTACKED, CONTROLS
from unmemorize.core.records import Interval
from unmemorize.core.shards import Row
from unmemorize.metrics.budget import extracted, rates, search_budget, work_to_extract
from unmemorize.metrics.ranking import share_interval


def to_rows(extraction: Extraction, facts: Sequence[Row]) -> list[Row]:
    """One row a picture, restart, number of updates and seed; those without a number of updates are the prompts' own.

    `facts` has one row a picture, with what else is to stand in its rows.
    """
    empty = dict.fromkeys(("restart", "step", "moved", "start", "evaluations"))
    rows = []
    for i, name in enumerate(extraction.names):
        head = facts[i] | {"picture": name.encode("utf-8", "backslashreplace").decode()}
        for j, seed in enumerate(extraction.seeds):
            value, verdict = extraction.original_values[i, j], extraction.original_verdicts[i, j]
            judged = {"value": float(value), "verdict": str(verdict)}
            judged["mirrored"] = bool(extraction.original_mirrored[i, j])
            rows.append(head | {"seed": seed} | judged | empty)
        for r, s, j in np.ndindex(extraction.values.shape[1:]):
            judged = {"value": float(extraction.values[i, r, s, j]), "verdict": str(extraction.verdicts[i, r, s, j])}
            judged["mirrored"] = bool(extraction.mirrored[i, r, s, j])
            place = {"restart": r, "step": extraction.steps[s], "moved": float(extraction.moved[i, r, s])}
            cost = {"start": float(extraction.start[i, r]), "evaluations": extraction.spent[s]}
            rows.append(head | {"seed": extraction.seeds[j]} | judged | place | cost)
    return rows


def from_rows(rows: Sequence[Row]) -> Extraction:
    """The numbers of rows that `to_rows` wrote, in its order."""
    own = [row for row in rows if row["step"] is None]
    attacked = [row for row in rows if row["step"] is not None]

    def distinct(key: str) -> tuple[Any, ...]:
        return tuple(dict.fromkeys(row[key] for row in attacked))

    ids, steps, seeds = distinct("id"), distinct("step"), distinct("seed")
    shape = len(ids), len(distinct("restart")), len(steps), len(seeds)
    names = {row["id"]: row["picture"] for row in attacked}

    def array(key: str) -> np.ndarray:
        return np.array([row[key] for row in attacked]).reshape(shape)

    return Extraction(
        names=tuple(names[i] for i in ids),
        steps=steps,
        seeds=seeds,
        values=array("value"),
        verdicts=array("verdict"),
        moved=array("moved")[..., 0],
        start=array("start")[..., 0, 0],
        original_values=np.array([row["value"] for row in own]).reshape(shape[0], shape[3]),
        original_verdicts=np.array([row["verdict"] for row in own]).reshape(shape[0], shape[3]),
        evaluations=max(row["evaluations"] for row in attacked),
        mirrored=array("mirrored"),
        original_mirrored=np.array([row["mirrored"] for row in own]).reshape(shape[0], shape[3]),
    )


def summarise(groups: Mapping[str, Extraction], criterion: Criterion, bound: float) -> Row:
    """What an attack on pictures and on its controls adds up to.

    Copy rates are shares of generated pictures, the control's the higher of the two. `extracted` has, for each group,
    the share of its pictures that any restart, seed and number of updates within the search budget brought back: all
    groups are counted alike. `work` has their evaluations until the first copy.

    Args:
        groups: The numbers of `attacked`, `control` and `unseen`.
        criterion: What the values are judged by.
        bound: The share of either control's pictures up to which copies count as extracted.
    """
    attacked = groups[ATTACKED]
    copied = {group: rates(extraction.copied) for group, extraction in groups.items()}
    back = {group: extracted(extraction.copied) for group, extraction in groups.items()}
    budget = search_budget(attacked.steps, [back[group] for group in CONTROLS], bound)
    original = _original(attacked)
    summary: Row = {
        "copy_rate": copied[ATTACKED][-1].value,
        "original_copy_rate": original and original["value"],
        "control_copy_rate": max(copied[group][-1].value for group in CONTROLS),
        "search_budget": budget,
        "evaluations": attacked.evaluations,
        "steps": attacked.steps[-1],
        "bound": bound,
    }
    by_group: dict[str, Row] = {name: {} for name in ("extracted", "pictures", "original", "verdicts", "work", "curve")}
    for group, extraction in groups.items():
        within = None if budget is None else asdict(back[group][attacked.steps.index(budget)])
        by_group["extracted"][group] = within
        by_group["pictures"][group] = len(extraction.names)
        by_group["original"][group] = _original(extraction)
        by_group["verdicts"][group] = _verdicts(extraction)
        by_group["work"][group] = _work(extraction)
        by_group["curve"][group] = _curve(extraction, copied[group], back[group], criterion)
    summary |= by_group
    said = " ".join(filter(None, [_sentence(summary), criterion.said_of_errors]))
    return {"sentence": said} | summary


def _original(extraction: Extraction) -> Row | None:
    known = ~np.isnan(extraction.original_values).all(axis=1)
    return asdict(share_interval((extraction.original_verdicts != "none")[known])) if known.any() else None


def _verdicts(extraction: Extraction) -> Row:
    """Shares of the last step's pictures."""
    shares = {kind: float((extraction.verdicts[:, :, -1] == kind).mean()) for kind in ("verbatim", "template")}
    return shares | {"mirrored": float(extraction.mirrored[:, :, -1].mean())}


def _work(extraction: Extraction) -> Row:
    spent = work_to_extract(extraction.copied, extraction.spent)
    reached = spent[np.isfinite(spent)]
    return {"median": float(np.median(reached)) if len(reached) else None, "never": int(np.isinf(spent).sum())}


def _curve(
    extraction: Extraction, copied: Sequence[Interval], back: Sequence[Interval], criterion: Criterion
) -> list[Row]:
    value = extraction.values.mean(axis=(0, 1, 3))
    near = extraction.values if criterion.higher_is_closer else 1 - extraction.values
    points = []
    for s, step in enumerate(extraction.steps):
        moved = extraction.moved[:, :, s]
        point = {
            "steps": step,
            "evaluations": extraction.spent[s],
            "copies": asdict(copied[s]),
            "extracted": asdict(back[s]),
            "value": float(value[s]),
            "similarity": float(near[:, :, s].clip(0).mean()),
            "moved": float(moved.mean()),
            "relative": float((moved / extraction.start.clip(1e-12)).mean()),
        }
        points.append(point)
    return points


def _sentence(summary: Row) -> str:
    bound, budget, steps = summary["bound"], summary["search_budget"], summary["steps"]
    if budget is None:
        return f"not an extraction: over {bound:.0%} of a control's pictures come back before any update"
    shares, pictures = summary["extracted"], summary["pictures"]
    count = {group: f"{shares[group]['value'] * pictures[group]:.0f} of {pictures[group]}" for group in pictures}
    harder = max(CONTROLS, key=lambda group: (shares[group]["value"], shares[group]["high"]))
    upper = shares[harder]["high"]
    extracted = f"{count[ATTACKED]} pictures come back within {budget} updates"
    beside = f"{count[harder]} of the harder control's (upper limit of the interval {upper:.0%})"
    alike = "a picture counts if any restart, seed or number of updates gives a copy, in all groups alike"
    beyond = f"; with more updates over {bound:.0%} of a control come back, which is no extraction (asked for: {steps})"
    return f"{extracted}, and {beside}; {alike}{beyond if budget < steps else ''}"
