"""An attack's numbers as rows, and what the rows add up to beside their controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from unmemorize.attack.extraction import Extraction
from unmemorize.core.criteria import Criterion
from unmemorize.metrics.budget import rates, search_budget, work_to_extract
from unmemorize.metrics.ranking import share_interval

Row = dict[str, Any]
CONTROLS = ("control", "unseen")


def to_rows(found: Extraction, facts: Sequence[Row]) -> list[Row]:
    """One row a picture, restart, number of updates and seed; those without a number of updates are the prompts' own.

    `facts` has one row a picture, with what else is to stand in its rows.
    """
    empty = dict.fromkeys(("restart", "step", "moved", "start", "evaluations"))
    rows = []
    for i, name in enumerate(found.names):
        head = facts[i] | {"picture": name.encode("utf-8", "backslashreplace").decode()}
        for j, seed in enumerate(found.seeds):
            judged = {"value": float(found.original_values[i, j]), "verdict": str(found.original_verdicts[i, j])}
            rows.append(head | {"seed": seed} | judged | empty)
        for r, s, j in np.ndindex(found.values.shape[1:]):
            judged = {"value": float(found.values[i, r, s, j]), "verdict": str(found.verdicts[i, r, s, j])}
            place = {"restart": r, "step": found.steps[s], "moved": float(found.moved[i, r, s])}
            cost = {"start": float(found.start[i, r]), "evaluations": found.spent[s]}
            rows.append(head | {"seed": found.seeds[j]} | judged | place | cost)
    return rows


def from_rows(rows: Sequence[Row]) -> Extraction:
    """The numbers of rows that `to_rows` wrote, in its order."""
    own = [row for row in rows if row["step"] is None]
    made = [row for row in rows if row["step"] is not None]
    keys = ("id", "restart", "step", "seed")
    ids, restarts, steps, seeds = (tuple(dict.fromkeys(row[key] for row in made)) for key in keys)
    shape = len(ids), len(restarts), len(steps), len(seeds)
    names = {row["id"]: row["picture"] for row in made}

    def array(key: str) -> np.ndarray:
        return np.array([row[key] for row in made]).reshape(shape)

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
        evaluations=max(row["evaluations"] for row in made),
    )


def summarise(found: Mapping[str, Extraction], criterion: Criterion, bound: float) -> Row:
    """What an attack on pictures and on its controls adds up to.

    The control copy rate is the higher of the two controls'. `extracted` counts pictures with a copy within the search
    budget; `work` has their evaluations until the first.

    Args:
        found: The numbers of `attacked`, `control` and `unseen`.
        criterion: What the values are judged by.
        bound: The control copy rate up to which copies count as extracted.
    """
    attacked, copied = found["attacked"], {group: rates(part.copied) for group, part in found.items()}
    steps = attacked.steps
    budget = search_budget(steps, [copied[group] for group in CONTROLS], bound)
    within = steps.index(budget) + 1 if budget is not None else 0
    worst = max((copied[group][-1] for group in CONTROLS), key=lambda rate: rate.value)
    safe = [copied[group][within - 1] for group in CONTROLS] if within else []
    original = {group: _original(part) for group, part in found.items()}
    summary = {
        "copy_rate": copied["attacked"][-1].value,
        "original_copy_rate": original["attacked"] and original["attacked"]["value"],
        "control_copy_rate": worst.value,
        "search_budget": budget,
        "evaluations": attacked.evaluations,
        "steps": steps[-1],
        "bound": bound,
        "control_upper_limit": max((rate.high for rate in safe), default=None),
        "extraction_rate": copied["attacked"][within - 1].value if within else None,
        "extracted": int(attacked.copied[:, :, :within].any(axis=(1, 2, 3)).sum()),
        "pictures": {group: len(part.names) for group, part in found.items()},
        "original": original,
        "verdicts": {group: _verdicts(part) for group, part in found.items()},
        "work": {group: _work(part) for group, part in found.items()},
        "curve": {group: _curve(part, copied[group], criterion) for group, part in found.items()},
    }
    return {"sentence": _sentence(summary, within)} | summary


def _original(found: Extraction) -> Row | None:
    known = ~np.isnan(found.original_values).all(axis=1)
    return asdict(share_interval((found.original_verdicts != "none")[known])) if known.any() else None


def _verdicts(found: Extraction) -> Row:
    """Shares of the last step's pictures."""
    return {kind: float((found.verdicts[:, :, -1] == kind).mean()) for kind in ("verbatim", "template")}


def _work(found: Extraction) -> Row:
    spent = work_to_extract(found.copied, found.spent)
    reached = spent[np.isfinite(spent)]
    return {"median": float(np.median(reached)) if len(reached) else None, "never": int(np.isinf(spent).sum())}


def _curve(found: Extraction, copied: Sequence[Any], criterion: Criterion) -> list[Row]:
    value = found.values.mean(axis=(0, 1, 3))
    near = found.values if criterion.higher_is_closer else 1 - found.values
    return [
        {
            "steps": step,
            "evaluations": found.spent[s],
            "copies": asdict(copied[s]),
            "value": float(value[s]),
            "similarity": float(near[:, :, s].clip(0).mean()),
            "moved": float(found.moved[:, :, s].mean()),
            "relative": float((found.moved[:, :, s] / found.start.clip(1e-12)).mean()),
        }
        for s, step in enumerate(found.steps)
    ]


def _sentence(summary: Row, within: int) -> str:
    count, total, bound = summary["extracted"], summary["pictures"]["attacked"], summary["bound"]
    if not within:
        return f"not an extraction: more than {bound:.0%} of the control's pictures are copies before any update"
    upper, budget, steps = summary["control_upper_limit"], summary["search_budget"], summary["steps"]
    said = f"{count} of {total} pictures come back within {budget} updates"
    limit = f"where at most {bound:.0%} of either control's are copies (upper limit of the interval {upper:.0%})"
    beyond = f"; with more the control is copied too, which is not an extraction (asked for: {steps})"
    return f"{said}, {limit}{beyond if budget < steps else ''}"
