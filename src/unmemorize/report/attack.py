"""The figures of attacks: copies by number of updates beside the controls', and what came out, picture by picture."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from unmemorize.core.groups import ATTACKED, CONTROL, IN_AUDIT, LABELS, UNSEEN
from unmemorize.core.pictures import Unusable, read_picture
from unmemorize.core.run import atomic
from unmemorize.core.shards import Row
from unmemorize.report.drawing import ACCENT, INK, MUTED, STYLE, Figure, panels_svg, share_axis

Curve = Mapping[str, Sequence[Mapping[str, Any]]]  # by group, a row for every number of updates
LINES: dict[str, tuple[str, Any]] = {ATTACKED: (ACCENT, "-"), CONTROL: (INK, "-"), UNSEEN: (MUTED, (0, (3, 2)))}
GROUPS = {IN_AUDIT[group]: group for group in LINES}
PANELS = 4  # side by side; more would be too narrow to read
ACROSS, EACH = 4, 8  # pictures in a row of the sheet, and of each group


def attack_figure(rows: Sequence[Row], unknown: Collection[str] = ()) -> Figure:
    """Copies that an audit's attack brings back, a panel a mitigation.

    `unknown` names the mitigations that the attack did not know.
    """
    curves: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in sorted(rows, key=lambda row: row["steps"]):
        copies = {"value": row["copy_rate"], "low": row["low"], "high": row["high"]}
        group = str(row["group"])
        curves[row["mitigation"]][GROUPS.get(group, group)].append({"steps": row["steps"], "copies": copies})
    shown = list(curves.items())[:PANELS]

    def draw(panels: Sequence[Axes]) -> None:
        for axes, (mitigation, curve) in zip(panels, shown, strict=True):
            draw_copies(axes, curve, "copies" if axes is panels[0] else "")
            title = _printable(mitigation) + (", unknown to the attack" if mitigation in unknown else "")
            axes.set_title(title, fontsize=9.5, color=INK, loc="left", parse_math=False)
        panels[-1].legend(frameon=False, fontsize=8.5, labelcolor=MUTED)

    frame = [{key: value for key, value in row.items() if key != "ratio"} for row in rows]
    caption = (
        "What an attacker gets back under each mitigation. The attack counts only where the line of attacked pictures "
        "is above those of pictures that were trained on and not memorized, and never trained on: enough updates draw "
        "any picture. Bands are 95% intervals."
    )
    label = "Copies after attack, by number of updates"
    svg = panels_svg(draw, "attack", label, panels=len(shown), size=(9.6, 3.2))
    return Figure("Attack on the mitigated model", svg, frame, caption)


def draw_copies(axes: Axes, curve: Curve, label: str = "generated pictures that are copies") -> None:
    """Copy rates by number of updates, a line a group, with 95% intervals where there are some."""
    for group, rows in curve.items():
        colour, line = LINES.get(group, (MUTED, ":"))
        name = LABELS.get(group, _printable(group))
        updates = [row["steps"] for row in rows]
        copies = [row["copies"] for row in rows]
        if all(rate["low"] is not None and rate["high"] is not None for rate in copies):
            low, high = [rate["low"] for rate in copies], [rate["high"] for rate in copies]
            axes.fill_between(updates, low, high, color=colour, alpha=0.12, lw=0)
        values = [rate["value"] for rate in copies]
        axes.plot(updates, values, color=colour, linestyle=line, linewidth=1.5, marker="o", markersize=3.5, label=name)
    axes.set(ylim=(-0.04, 1.04))
    share_axis(axes.yaxis, label)
    _updates_axis(axes, curve)


def _updates_axis(axes: Axes, curve: Curve) -> None:
    axes.set_xscale("symlog", linthresh=1)
    ticks = sorted(set().union(*([row["steps"] for row in rows] for rows in curve.values())))
    axes.set_xlim(-0.1, 1.3 * max(ticks[-1], 1))
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("updates")


def draw_curves(curve: Curve, path: Path) -> None:
    """Copy rate and similarity by number of updates, as SVG."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # not the reader's own style
        matplotlib.rcParams.update(STYLE | {"figure.facecolor": "white"})
        canvas = Canvas(figsize=(8, 3.2), layout="constrained")
        copies, similarity = canvas.subplots(1, 2)
        draw_copies(copies, curve)
        copies.legend(frameon=False, fontsize="small")
        for group, rows in curve.items():
            colour, line = LINES[group]
            values = [row["similarity"] for row in rows]
            similarity.plot([row["steps"] for row in rows], values, marker="o", color=colour, linestyle=line)
        similarity.set(ylim=(-0.04, 1.04), ylabel="mean similarity to the target")
        _updates_axis(similarity, curve)
        with atomic(path) as temporary:
            canvas.savefig(temporary, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))


def _printable(text: str) -> str:
    return "".join(c for c in text if c.isprintable())[:32]


def draw_sheet(values: Mapping[str, tuple[float, float]], run: Path) -> None:
    """Target, what the prompt gives and what the attack gives, picture by picture with what was judged: sheet.png."""
    keys: list[str] = []
    for group in LINES:
        keys += [key for key in values if key.startswith(group)][:EACH]
    down = math.ceil(len(keys) / ACROSS)
    canvas = Canvas(figsize=(ACROSS * 3.6, down * 1.55 + 0.3), layout="constrained")
    cells = canvas.subplots(down, ACROSS * 3, squeeze=False)
    for cell in cells.flat:
        cell.set_axis_off()
    for place, key in enumerate(keys):
        row, column = divmod(place, ACROSS)
        original, attacked = values[key]
        of_prompt = "–" if math.isnan(original) else f"prompt {original:.2f}"
        titles = {"target": key, "original": of_prompt, "attacked": f"attack {attacked:.2f}"}
        for offset, (name, title) in enumerate(titles.items()):
            cell = cells[row][3 * column + offset]
            with suppress(Unusable):  # damaged since: a page leaves such pictures out, too
                cell.imshow(read_picture(run / "images" / f"{key}-{name}.png"), interpolation="nearest")
            cell.set_title(title, fontsize=7.5, parse_math=False)
    with atomic(run / "sheet.png") as temporary:
        canvas.savefig(temporary, format="png", metadata={"Software": None}, dpi=110)
