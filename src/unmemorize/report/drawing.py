"""How figures are drawn: as SVG that follows the page's light and dark schemes, with the numbers behind it.

Colours are written as CSS variables with a fallback; the bytes depend on the numbers alone.
"""

from __future__ import annotations

import base64
import csv
import html
import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from unmemorize.core.shards import Row

INK, MUTED, FAINT, LINE, ACCENT, PAPER = "#1b1d21", "#646973", "#b7b9be", "#e2e0db", "#b93a08", "#fdfcfa"
VARIABLES = {INK: "ink", MUTED: "muted", FAINT: "faint", LINE: "line", ACCENT: "accent", PAPER: "paper"}
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "unmemorize",
    "svg.fonttype": "none",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.facecolor": "none",
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
}


@dataclass(frozen=True)
class Figure:
    """A drawing, the rows of numbers it shows, and what to read from it."""

    title: str
    svg: str
    frame: list[Row]
    caption: str

    @property
    def csv(self) -> str:
        """The numbers as a data URI of a CSV file."""
        file = io.StringIO()
        writer = csv.DictWriter(file, list(self.frame[0]) if self.frame else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _cell(value) for key, value in row.items()} for row in self.frame)
        return "data:text/csv;charset=utf-8;base64," + base64.b64encode(file.getvalue().encode()).decode()


def share_axis(axis: matplotlib.axis.Axis, label: str) -> None:
    """Ticks and a label for an axis of shares, 0 to 1."""
    axis.set_ticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"])
    axis.set_label_text(label)
    axis.grid(True, color=LINE, linewidth=0.6, alpha=0.7)


def panels_svg(
    draw: Callable[[Sequence[Axes]], None], name: str, label: str, *, panels: int, size: tuple[float, float]
) -> str:
    """What `draw` puts into `panels` axes side by side, as an svg element."""
    buffer = io.StringIO()
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(?s)Glyph .* missing")  # the browser's fonts have it
        matplotlib.rcdefaults()  # not the reader's own style
        matplotlib.rcParams.update(STYLE)
        canvas = Canvas(figsize=size, layout="constrained")
        draw(list(canvas.subplots(1, panels, sharey=True, squeeze=False)[0]))
        canvas.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _inline(buffer.getvalue(), name, label)


def _inline(svg: str, name: str, label: str) -> str:
    """The svg element alone: named, its ids unique in the page, its colours open to the page's scheme."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg).replace("url(#", f"url(#{name}-")
    svg = re.sub(r'^<svg ([^>]*?)width="[^"]*" height="[^"]*"', r"<svg \1", svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable}, {colour})")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(label)}" ', 1)


def axes_svg(draw: Callable[[Axes], None], name: str, label: str, size: tuple[float, float] = (4.7, 3.5)) -> str:
    """What `draw` puts into one pair of axes, as an svg element."""
    return panels_svg(lambda panels: draw(panels[0]), name, label, panels=1, size=size)


def _cell(value: object) -> object:
    """Text that a spreadsheet would run as a formula is quoted."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
