"""An attack's pictures: copies by number of updates beside the controls', and what was generated beside its target."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unmemorize.core.groups import ATTACKED, CONTROL, LABELS, UNSEEN
from unmemorize.core.pictures import read_picture
from unmemorize.core.run import atomic
from unmemorize.report.drawing import ACCENT, INK, MUTED, STYLE

COLOURS = {ATTACKED: ACCENT, CONTROL: INK, UNSEEN: MUTED}
ACROSS, MOST = 4, 24  # pictures in a row of the sheet, and in all


def draw_curves(curve: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Copy rate and similarity by number of updates, all three groups, as SVG."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # not the reader's own style
        matplotlib.rcParams.update(STYLE | {"figure.facecolor": "white"})
        canvas = Figure(figsize=(8, 3.2), layout="constrained")
        copies, similarity = canvas.subplots(1, 2)
        draw_copies(copies, curve)
        for group, colour in COLOURS.items():
            x = [row["steps"] for row in curve[group]]
            values = [row["similarity"] for row in curve[group]]
            similarity.plot(x, values, "o-", color=colour, label=LABELS[group])
        _axis(similarity, "mean similarity to the target")
        with atomic(path) as temporary:
            canvas.savefig(temporary, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))


def draw_copies(axes: Axes, curve: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Copy rate by number of updates with its intervals."""
    for group, colour in COLOURS.items():
        x, copies = [r["steps"] for r in curve[group]], [r["copies"] for r in curve[group]]
        axes.vlines(x, [c["low"] for c in copies], [c["high"] for c in copies], color=colour, alpha=0.3, linewidth=4)
        axes.plot(x, [c["value"] for c in copies], "o-", color=colour, label=LABELS[group])
    _axis(axes, "generated pictures that are copies")
    axes.legend(frameon=False, fontsize="small")


def _axis(axes: Axes, label: str) -> None:
    axes.set_xscale("symlog", linthresh=1)
    updates: set[int] = set()
    for line in axes.lines[-3:]:
        updates.update(int(x) for x in np.asarray(line.get_xdata()))
    ticks = sorted(updates)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set(ylim=(-0.04, 1.04), xlabel="updates", ylabel=label)


def draw_sheet(values: Mapping[str, tuple[float, float]], run: Path) -> None:
    """Target, what the prompt gives and what the attack gives, picture by picture with what was judged: sheet.png."""
    keys = []
    for group in COLOURS:
        keys += [key for key in values if key.startswith(group)][: MOST // len(COLOURS)]
    down = math.ceil(len(keys) / ACROSS)
    canvas = Figure(figsize=(ACROSS * 3.6, down * 1.55 + 0.3), layout="constrained")
    cells = canvas.subplots(down, ACROSS * 3, squeeze=False)
    for cell in cells.flat:
        cell.set_axis_off()
    for place, key in enumerate(keys):
        row, column = divmod(place, ACROSS)
        original, attacked = values[key]
        said = "–" if math.isnan(original) else f"prompt {original:.2f}"
        titles = {"target": key, "original": said, "attacked": f"attack {attacked:.2f}"}
        for offset, (name, title) in enumerate(titles.items()):
            cell = cells[row][3 * column + offset]
            cell.imshow(read_picture(run / "images" / f"{key}-{name}.png"), interpolation="nearest")
            cell.set_title(title, fontsize=7.5, parse_math=False)
    with atomic(run / "sheet.png") as temporary:
        canvas.savefig(temporary, format="png", metadata={"Software": None}, dpi=110)
