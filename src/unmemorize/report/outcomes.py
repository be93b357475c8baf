"""The figures of what was done about it: how mitigations stand up to an attack, and where memories sit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence

from matplotlib.axes import Axes

from unmemorize.core.groups import ATTACKED, CONTROL, IN_AUDIT, LABELS, UNSEEN
from unmemorize.core.shards import Row
from unmemorize.report.drawing import ACCENT, INK, MUTED, PAPER, Figure, axes_svg, panels_svg, share_axis

PANELS = 4  # side by side; more would be too narrow to read
LINES = {ATTACKED: (ACCENT, "-"), CONTROL: (INK, "-"), UNSEEN: (MUTED, (0, (3, 2)))}
GROUPS = {IN_AUDIT[group]: group for group in LINES}


def attack_figure(curve: Sequence[Row], unknown: Collection[str] = ()) -> Figure:
    """Copies that the attack brings back, by its steps, beside the same attack on pictures that are not memorized.

    `unknown` names the mitigations that the attack did not know.
    """
    lines: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in sorted(curve, key=lambda row: row["steps"]):
        lines[row["mitigation"]][row["group"]].append(row)
    shown = list(lines.items())[:PANELS]

    def draw(panels: Sequence[Axes]) -> None:
        for axes, (mitigation, groups) in zip(panels, shown, strict=True):
            for group, rows in groups.items():
                _draw_line(axes, group, rows)
            title = _plain(mitigation) + (", unknown to the attack" if mitigation in unknown else "")
            axes.set_title(title, fontsize=9.5, color=INK, loc="left", parse_math=False)
            axes.set(ylim=(-0.04, 1.04), xlabel="attack steps")
            share_axis(axes.yaxis, "copies" if axes is panels[0] else "")
        panels[-1].legend(frameon=False, fontsize=8.5, labelcolor=MUTED)

    frame = [{key: value for key, value in row.items() if key != "ratio"} for row in curve]
    caption = (
        "What an attacker gets back under each mitigation. The attack counts only where the line of attacked pictures "
        "is above those of pictures that were trained on and not memorized, and never trained on: an attack of enough "
        "steps draws any picture. Bands are 95% intervals."
    )
    svg = panels_svg(draw, "attack", "Copies after attack, by attack steps", panels=len(shown), size=(9.6, 3.2))
    return Figure("Attack on the mitigated model", svg, frame, caption)


def _draw_line(axes: Axes, group: str, rows: Sequence[Row]) -> None:
    known = GROUPS.get(group, "")
    colour, style = LINES.get(known, (MUTED, (0, (1, 2))))
    x, y = [row["steps"] for row in rows], [row["copy_rate"] for row in rows]
    if all(row["low"] is not None and row["high"] is not None for row in rows):
        axes.fill_between(
            x, [row["low"] for row in rows], [row["high"] for row in rows], color=colour, alpha=0.12, lw=0
        )
    label = LABELS.get(known, _plain(group))
    axes.plot(x, y, color=colour, linestyle=style, linewidth=1.5, marker="o", markersize=3.5, label=label)


def locality_figure(rows: Sequence[Row]) -> Figure:
    """How far prompts that bring back one picture agree, by level, beside prompts that have nothing in common."""
    levels = list(dict.fromkeys(row["level"] for row in rows))
    groups = list(dict.fromkeys(row["group"] for row in rows))

    def draw(axes: Axes) -> None:
        for place, group in enumerate(groups):
            found = [row for row in rows if row["group"] == group]
            y = [-levels.index(row["level"]) - 0.18 * place for row in found]
            colour = ACCENT if place == 0 else INK if place == 1 else MUTED
            if all(row["low"] is not None and row["high"] is not None for row in found):
                axes.hlines(
                    y, [row["low"] for row in found], [row["high"] for row in found], color=colour, lw=4, alpha=0.3
                )
            values = [row["value"] for row in found]
            axes.scatter(values, y, color=colour, edgecolors=PAPER, s=42, zorder=2, label=_plain(group))
        axes.set_yticks(
            [-i for i in range(len(levels))], [_plain(level) for level in levels], parse_math=False, color=INK
        )
        axes.set(xlabel="agreement")
        axes.legend(frameon=False, fontsize=8.5, labelcolor=MUTED)

    caption = (
        "Agreement between attacks or edits of the same picture, beside those of different pictures. If one picture's "
        "agree no more than others', its memory sits in no one place, and cutting a place out does not remove it."
    )
    svg = axes_svg(draw, "locality", "Agreement by level", size=(9.6, 1.2 + 0.6 * len(levels)))
    return Figure("Where the memory sits", svg, list(rows), caption)


def _plain(text: str) -> str:
    return "".join(c for c in text if c.isprintable())[:32]
