"""The figures of detection and copying. Each is a function that returns the drawing together with its numbers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from matplotlib.axes import Axes

from unmemorize.core.shards import Row
from unmemorize.report.drawing import ACCENT, FAINT, INK, LINE, MUTED, PAPER, Figure, axes_svg, share_axis
from unmemorize.report.rows import Prompt
from unmemorize.report.schema import Detector, Dose, Roc, TextControl

MOST_DOTS = 1500  # beyond this many prompts the distribution shows quantiles only


def dose_figure(dose: Sequence[Dose]) -> Figure:
    """Share of generated pictures that are copies, against the number of copies in the training set."""
    dose = sorted(dose, key=lambda point: point.copies)
    x, y = [d.copies for d in dose], [d.copy_rate for d in dose]

    def draw(axes: Axes) -> None:
        axes.set_xscale("symlog" if min(x) < 1 else "log", base=2, **({"linthresh": 1} if min(x) < 1 else {}))
        axes.vlines(x, [d.low for d in dose], [d.high for d in dose], color=ACCENT, alpha=0.35, linewidth=5)
        axes.plot(x, y, color=ACCENT, linewidth=1.5, marker="o", markersize=6, markeredgecolor=PAPER)
        axes.set_xticks(x, [str(copies) for copies in x])
        axes.set_xticks([], minor=True)
        share_axis(axes.yaxis, "generated pictures that are copies")
        axes.set(ylim=(-0.04, 1.04), xlabel="copies of the picture in the training set")

    frame = [point.model_dump() for point in dose]
    caption = (
        "Each point is the share of generated pictures that copy a training picture which was in the training set that "
        "many times; bars are 95% intervals over pictures. The rise shows how much duplication it takes."
    )
    return Figure("Duplication and copying", axes_svg(draw, "dose", "Share of copies by duplication"), frame, caption)


def roc_figure(roc: Roc, detector: Detector | None, text: TextControl | None) -> Figure:
    """The detector's ROC curve with its interval, the chance line, and what text alone achieves."""

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 4)))
        axes.plot(roc.fpr, roc.tpr, color=INK, linewidth=2, drawstyle="steps-post")
        if detector is not None:
            rate = detector.tpr
            axes.vlines([rate.fpr], [rate.low], [rate.high], color=ACCENT, alpha=0.45, linewidth=5)
            axes.plot([rate.fpr], [rate.value], color=ACCENT, marker="o", markersize=7, markeredgecolor=PAPER)
        for row, (label, value) in enumerate(_roc_notes(detector, text)):
            y = 0.205 - 0.08 * row
            axes.text(0.665, y, label, color=MUTED, ha="right", parse_math=False)
            axes.text(0.685, y, value, color=INK, ha="left", parse_math=False)
        share_axis(axes.xaxis, "ordinary prompts flagged")
        share_axis(axes.yaxis, "memorized prompts found")
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.03))

    frame = [{"fpr": fpr, "tpr": tpr} for fpr, tpr in zip(roc.fpr, roc.tpr, strict=False)]
    caption = (
        "How many memorized prompts the score finds for a given share of ordinary prompts flagged by mistake. The "
        "dashed line is chance; the dot with its 95% interval is the rate at the fixed share of false alarms. If text "
        "alone came close to the detector, the comparison would say little about the model."
    )
    return Figure("Detection", axes_svg(draw, "roc", "ROC curve of the detector"), frame, caption)


def _roc_notes(detector: Detector | None, text: TextControl | None) -> list[tuple[str, str]]:
    def area(measured: Detector | TextControl | None) -> str:
        if measured is None:
            return "not applicable"
        auc = measured.auc
        return f"{auc.value:.3f} [{auc.low:.2f}, {auc.high:.2f}]"

    return [("area under the curve", area(detector)), ("same, from text alone", area(text)), ("chance", "0.500")]


def score_figure(prompts: Sequence[Prompt]) -> Figure:
    """Scores of all prompts, a row for each kind of planted prompt where these are known; copies are marked."""
    scored = [prompt for prompt in prompts if prompt.score is not None]
    rows: dict[str, list[Prompt]] = defaultdict(list)
    for prompt in sorted(scored, key=lambda p: (p.memorable is not True, p.kind or "", p.rank)):
        rows[_row_label(prompt)].append(prompt)

    def draw(axes: Axes) -> None:
        span = max(p.score or 0 for p in scored) - min(p.score or 0 for p in scored) or 1.0
        for y, members in enumerate(rows.values()):
            _draw_row(axes, -y, members, span / 90, dots=len(scored) <= MOST_DOTS)
        axes.set_yticks([-y for y in range(len(rows))], list(rows), parse_math=False, color=INK)
        axes.set(ylim=(0.6 - len(rows), 0.6), xlabel="score, mean over seeds (higher = more memorized)")
        axes.spines["left"].set_visible(False)

    height = 0.85 + 0.48 * len(rows)
    svg = axes_svg(draw, "scores", "Distribution of scores", size=(9.6, height))
    frame: list[Row] = []
    for label, members in rows.items():
        frame += [{"group": label, "id": p.id, "score": p.score, "verdict": p.verdict} for p in members]
    caption = (
        "One mark per prompt. Filled: at least one generated picture is a copy. Open: pictures were generated, none "
        "was found to be a copy. Faint: not generated. The upright stroke is each row's median."
    )
    return Figure("Scores", svg, frame, caption)


def _row_label(prompt: Prompt) -> str:
    group = {True: "planted", False: "ordinary", None: ""}[prompt.memorable]
    name = "".join(c for c in prompt.kind or "" if c.isprintable())[:24]
    return ": ".join(part for part in (group, name) if part) or "all prompts"


def _draw_row(axes: Axes, y: float, members: Sequence[Prompt], bin_width: float, *, dots: bool) -> None:
    values = sorted(p.score or 0.0 for p in members)
    last = len(values) - 1
    low, median, high = values[int(0.05 * last)], values[int(0.5 * last)], values[int(0.95 * last)]
    axes.hlines(y, low, high, color=LINE, linewidth=1.2, zorder=0)
    axes.vlines(median, y - 0.36, y + 0.36, color=INK, linewidth=1.2, zorder=1)
    if dots:
        xs, ys = _stack(members, y, bin_width)
        face = [ACCENT if p.copied else PAPER if p.groups else FAINT for p in members]
        edge = [ACCENT if p.copied else MUTED if p.groups else FAINT for p in members]
        axes.scatter(xs, ys, s=20, c=face, edgecolors=edge, linewidths=1, zorder=2)


def _stack(members: Sequence[Prompt], y: float, bin_width: float) -> tuple[list[float], list[float]]:
    """Dots that would overlap are moved up and down in turn."""
    taken: dict[int, int] = defaultdict(int)
    xs, ys = [], []
    for score in (prompt.score or 0.0 for prompt in members):
        place = taken[round(score / bin_width)]
        taken[round(score / bin_width)] += 1
        offset = 0.13 * ((place + 1) // 2) * (1 if place % 2 else -1)
        xs.append(score)
        ys.append(y + max(-0.39, min(0.39, offset)))
    return xs, ys
