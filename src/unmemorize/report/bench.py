"""The page and the LaTeX table of a ranking, of detectors or of mitigations."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from unmemorize.core.run import RunRecord
from unmemorize.core.shards import Row
from unmemorize.metrics.frontier import frontier_area
from unmemorize.report.build import number, rendered, write_text
from unmemorize.report.schema import read_document, read_rows

EVERY = "memorized"  # the group of all prompts that are labelled
COMBINED, TEXT = "combination", "text alone"
BESIDE = {
    COMBINED: "of all methods, its weights fitted on the other half of the labels",
    TEXT: "control: a classifier that sees no model",
}

_TEXT, _REAL, _WHOLE = pa.string(), pa.float64(), pa.int64()
RANKING = pa.schema(
    [
        *((name, _TEXT) for name in ("model", "group", "method", "reason")),
        *((name, _WHOLE) for name in ("memorized", "ordinary")),
        *((name, _REAL) for name in ("auc", "auc_low", "auc_high")),
        *((name, _REAL) for name in ("tpr", "tpr_low", "tpr_high")),
        *((name, _REAL) for name in ("behind", "behind_low", "behind_high")),
        *((name, _REAL) for name in ("evaluations", "ratio")),
    ]
)
CONTEST = pa.schema(
    [
        *((name, _TEXT) for name in ("model", "method", "reason", "acts")),
        *((name, _WHOLE) for name in ("pictures", "ordinary")),
        *((name, _REAL) for name in ("copies", "copies_low", "copies_high")),
        *((name, _REAL) for name in ("fall", "fall_low", "fall_high")),
        *((name, _REAL) for name in ("changed", "changed_low", "changed_high")),
        *((name, _REAL) for name in ("alignment", "alignment_low", "alignment_high")),
        *((name, _REAL) for name in ("likeness", "evaluations", "gradients", "seconds")),
        ("attack_knows_it", pa.bool_()),
        *((name, _REAL) for name in ("attacked", "attacked_low", "attacked_high")),
        *((name, _REAL) for name in ("control", "control_low", "control_high")),
    ]
)
SCHEMAS = {"detector": RANKING, "mitigation": CONTEST}


@dataclass(frozen=True)
class Ranking:
    """One model's part of the page.

    Attributes:
        model: The model.
        methods: The rows of all labelled prompts, the largest area first.
        groups: Each other group: its name, its size, and its areas in the order of `methods`, None where there is none.
        not_applicable: Methods that do not apply to the model, each with the reason.
    """

    model: str
    methods: list[Row]
    groups: list[tuple[str, Row, list[Row | None]]]
    not_applicable: list[Row]


def build_bench(run: Path) -> Path:
    """Write `report.html` and `table.tex` into the run directory of a ranking; returns the page's path.

    Raises:
        UserError: The run directory is incomplete or damaged.
    """
    record = read_document(run / "run.json", RunRecord)
    kind = str(record.spec.get("kind", "detector"))
    rows = read_rows(run / "scores" / "bench.parquet", SCHEMAS[kind])
    if kind == "mitigation":
        contests = contests_of(rows)
        write_text(run / "table.tex", mitigations_latex(contests))
        page = rendered("contest.html.j2", record=record, contests=contests)
    else:
        rankings = rankings_of(rows)
        write_text(run / "table.tex", latex(rankings))
        page = rendered("bench.html.j2", record=record, rankings=rankings, beside=BESIDE)
    return write_text(run / "report.html", page)


@dataclass(frozen=True)
class Contest:
    """One model's part of a page of mitigations.

    Attributes:
        model: The model.
        methods: The rows, without a mitigation first, then by the copies that are left.
        not_applicable: Mitigations that do not apply to the model, each with the reason.
        curves: Each method with its number of settings and the area under its curve of copies against alignment, the
            smallest first; empty where no alignment is known.
        attacked: Whether they were attacked.
    """

    model: str
    methods: list[Row]
    not_applicable: list[Row]
    curves: list[tuple[str, int, float]]
    attacked: bool


def contests_of(rows: Sequence[Row]) -> list[Contest]:
    """The rows of mitigations by model, in order."""
    contests = []
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        without, *tried = [row for row in own if row["reason"] is None]
        tried.sort(key=lambda row: (row["copies"], -(row["alignment"] or 0), -row["likeness"]))
        methods, not_applicable = [without, *tried], [row for row in own if row["reason"] is not None]
        attacked = without["attack_knows_it"] is not None
        contests.append(Contest(model, methods, not_applicable, _curves(without, tried), attacked))
    return contests


def _curves(without: Row, tried: Sequence[Row]) -> list[tuple[str, int, float]]:
    """The area of each method over its settings, of what is left of the copies against the alignment that is lost."""
    curves = []
    for method in dict.fromkeys(row["method"].partition(":")[0] for row in tried):
        settings = [row for row in tried if row["method"].partition(":")[0] == method]
        if all(row["alignment"] is not None for row in settings):
            left = [row["copies"] / without["copies"] for row in settings]
            area = frontier_area([-row["alignment"] for row in settings], left)
            curves.append((method, len(settings), area))
    return sorted(curves, key=lambda curve: curve[2])


def mitigations_latex(contests: Sequence[Contest]) -> str:
    """All mitigations as a table of the booktabs package."""
    parts = []
    attacked = any(contest.attacked for contest in contests)
    for contest in contests:
        lines = []
        for row in contest.methods:
            cells = [_escaped(row["method"]), *(_limits(row, name) for name in ("copies", "changed", "alignment"))]
            cells += [number(row["likeness"]), number(row["evaluations"])]
            if attacked:
                cells += [_limits(row, name) for name in ("attacked", "control")]
            lines.append(cells)
        parts.append((contest.model, lines))
    head = ["mitigation", "copies", "ordinary changed", "alignment", "likeness", "evaluations"]
    head += ["attacked", "its control"] if attacked else []
    return _tabular(head, parts)


def rankings_of(rows: Sequence[Row]) -> list[Ranking]:
    """The rows by model, in order."""
    rankings = []
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        ranked = [row for row in own if row["reason"] is None]
        methods = sorted((row for row in ranked if row["group"] == EVERY), key=lambda row: -row["auc"])
        groups: list[tuple[str, Row, list[Row | None]]] = []
        for name in dict.fromkeys(row["group"] for row in ranked):
            by_method = {row["method"]: row for row in ranked if row["group"] == name}
            if name != EVERY:
                cells = [by_method.get(row["method"]) for row in methods]
                groups.append((name, next(iter(by_method.values())), cells))
        rankings.append(Ranking(model, methods, groups, [row for row in own if row["reason"] is not None]))
    return rankings


def latex(rankings: Sequence[Ranking]) -> str:
    """All labelled prompts as a table of the booktabs package."""
    parts = []
    for ranking in rankings:
        lines = []
        for row in ranking.methods:
            cells = [_escaped(row["method"]), *(_limits(row, name) for name in ("auc", "tpr", "behind"))]
            lines.append([*cells, number(row["evaluations"]), number(row["ratio"])])
        parts.append((ranking.model, lines))
    head = ("method", "AUC", r"TPR at 1\% FPR", "behind the best", "evaluations", "time")
    return _tabular(head, parts)


def _tabular(head: Sequence[str], parts: Sequence[tuple[str, Sequence[Sequence[str]]]]) -> str:
    """A table of the booktabs package: a part a model, with its name above its lines of cells."""
    lines = [rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", r"\toprule", " & ".join(head) + r" \\"]
    for model, rows in parts:
        lines += [r"\midrule", rf"\multicolumn{{{len(head)}}}{{l}}{{{_escaped(model)}}} \\"]
        lines += [" & ".join(cells) + r" \\" for cells in rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _limits(row: Row, name: str) -> str:
    if row[name] is None:
        return "--"
    if row[f"{name}_low"] is None:
        return f"{row[name]:.3f}"
    return f"{row[name]:.3f} [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]"


def _escaped(text: str) -> str:
    """Text that LaTeX sets as it is."""
    named = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return re.sub(r"[\\~^&%$#_{}]", lambda match: named.get(match[0], "\\" + match[0]), text)
