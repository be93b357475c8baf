"""The picture of a locality study: where the embeddings lie, and how alike they act, layer by layer."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from unmemorize.report.drawing import ACCENT, FAINT, INK, LINE, MUTED, STYLE

# group: what it is called, colour, marker, and where it stands beside its layer
GROUPS = {
    "adversarial": ("embeddings of this picture", ACCENT, "o", -0.27),
    "inits": ("the random inits they grew from", FAINT, "o", -0.09),
    "memorized": ("prompts of different memorized pictures", INK, "D", 0.09),
    "ordinary": ("ordinary prompts", MUTED, "x", 0.27),
}
METHODS = {"nemo": "NeMo: value projections", "wanda": "Wanda: feed-forwards"}


def short(layer: str) -> str:
    """A module's name without what all of them share."""
    return re.sub(r"_blocks?|attentions\.|transformer_blocks\.|\.(attn2\.to_v|ff\.net\.2)$", "", layer)


def draw(result: Mapping[str, Any], points: Sequence[Mapping[str, Any]]) -> str:
    """An SVG: the map of embeddings, and for each method the activations' distances and the selections' overlaps."""
    buffer = io.StringIO()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE | {"figure.facecolor": "white"})
        canvas = Canvas(figsize=(11.5, 6.4), layout="constrained")
        axes = canvas.subplot_mosaic(
            [["map", "d nemo", "d wanda"], ["map", "a nemo", "a wanda"]], width_ratios=[3, 2, 2]
        )
        _map(axes["map"], result, points)
        for method, title in METHODS.items():
            layers = [layer for layer in result["layers"] if layer["method"] == method]
            _layers(axes[f"d {method}"], layers, "discrepancy")
            _layers(axes[f"a {method}"], layers, "agreement")
            axes[f"d {method}"].set(title=title, ylabel="L2 between activations", ylim=(0, None))
            axes[f"a {method}"].set(ylabel="overlap (IoU) of what is selected", ylim=(-0.03, 1.03))
        canvas.legend(*axes["map"].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
        canvas.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return buffer.getvalue()


def _map(axes: Axes, result: Mapping[str, Any], points: Sequence[Mapping[str, Any]]) -> None:
    by_group = {group: [(p["x"], p["y"]) for p in points if p["group"] == group] for group in GROUPS}
    for start, end in zip(by_group["inits"], by_group["adversarial"], strict=True):
        axes.plot(*zip(start, end, strict=True), color=LINE, linewidth=0.7, zorder=0)
    for group, (label, colour, marker, _) in reversed(GROUPS.items()):
        x = [point[0] for point in by_group[group]]
        y = [point[1] for point in by_group[group]]
        axes.scatter(x, y, s=14, c=colour, marker=marker, linewidths=0.8, label=label)
    axes.plot([], [], color=MUTED, linestyle=":", label="random sets of the same sizes")
    axes.set(xticks=[], yticks=[], title=f"Embeddings (t-SNE), {_kept(result)}")
    for spine in axes.spines.values():
        spine.set_visible(False)


def _kept(result: Mapping[str, Any]) -> str:
    return f"{result['embeddings']['adversarial']} of {result['inits']} inits lead to copies"


def _layers(axes: Axes, layers: Sequence[Mapping[str, Any]], measure: str) -> None:
    for group, (_, colour, marker, shift) in GROUPS.items():
        found = [layer[measure][group] for layer in layers]
        x = [i + shift for i in range(len(layers))]
        axes.vlines(x, [f["low"] for f in found], [f["high"] for f in found], color=colour, alpha=0.5, linewidth=3)
        axes.scatter(x, [f["value"] for f in found], s=16, c=colour, marker=marker, linewidths=0.8, zorder=2)
    if measure == "agreement":
        for i, layer in enumerate(layers):
            axes.hlines(layer["chance"]["adversarial"], i - 0.4, i + 0.4, color=MUTED, linestyle=":")
    axes.set_xticks(range(len(layers)), [short(layer["layer"]) for layer in layers], rotation=60, ha="right")
