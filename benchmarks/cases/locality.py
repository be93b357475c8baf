"""Is the memory of one picture local? The embedding attack from random starts on two pictures of the shipped testbed.

The command `unmemorize locality` compares embeddings and what methods select; here activations are compared as well,
and NeMo with Wanda. The drawing is of the first picture. A run that was killed continues. The pictures are the first by
name of those planted 100 times and of those planted 300 times: chosen before any attack. `--inits` random embeddings
for the first picture, `--more` for the second; 0 leaves it out. `--only` measures pictures whose names contain it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from common import GUIDANCE, STEPS
from harness import OUT, Options, Row, Study, read, show, table
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from unmemorize.core.hooks import observed
from unmemorize.core.model import Condition, DiffusionModel, Reach
from unmemorize.core.records import Interval
from unmemorize.core.run import atomic
from unmemorize.core.specs import LocalitySpec
from unmemorize.localize.locality import Floats, distances, mean_over, mean_over_pairs, short
from unmemorize.localize.reference import Start
from unmemorize.models.load import load
from unmemorize.report.drawing import ACCENT, FAINT, INK, LINE, MUTED, STYLE
from unmemorize.stages.locality import locality

RUNS = Path("runs/locality")
PICTURES = ("verbatim-1-00-00.png", "verbatim-3-00-00.png")
# Kowalczuk et al. 2026, read off a figure: layers in which same > different, of 7. Stable Diffusion 1.4.
PUBLISHED = {"nemo": {"discrepancy": 7, "agreement": 3}, "wanda": {"discrepancy": 1, "agreement": 7}}
GROUPS = {
    "adversarial": "embeddings of this picture",
    "inits": "their random inits",
    "memorized": "prompts of different memorized pictures",
    "ordinary": "ordinary prompts",
}
METHODS = {"nemo": "NeMo", "wanda": "Wanda"}
# Colour, marker, and where a group stands beside its layer.
MARKS = {
    "adversarial": (ACCENT, "o", -0.27),
    "inits": (FAINT, "o", -0.09),
    "memorized": (INK, "D", 0.09),
    "ordinary": (MUTED, "x", 0.27),
}
ROWS = 64  # evaluations at once


@dataclass(frozen=True)
class Between:
    """How alike two methods' shares over blocks are, 0 to 1: of the same embedding, and of two of one group."""

    same: Interval
    different: float


def study(picture: str, inits: int) -> Row:
    """Both tests of the command, the activations, and the methods beside each other."""
    spec = LocalitySpec(model="testbed", target=picture, inits=inits, steps=STEPS, guidance=GUIDANCE)
    run = RUNS / Path(picture).stem
    with tqdm(desc=picture) as bar:

        def progress(stage: str, done: int, total: int) -> None:
            bar.set_postfix_str(f"{stage} {done}/{total}")
            bar.update()

        numbers = locality(spec, run, progress)
    model = load(spec.model)
    embeddings = load_file(run / "embeddings.safetensors")
    groups = {group: Condition(embeddings[group].to(model.device)) for group in GROUPS}
    apart: dict[str, Row] = {}
    for group, cond in groups.items():
        for name, activations in (*value_activations(model, cond), *feed_forward_activations(model, cond)):
            apart.setdefault(name, {})[group] = asdict(mean_over_pairs(distances(activations)))
    layers = [layer | {"discrepancy": apart[layer["layer"]]} for layer in numbers["layers"]]
    selected = pq.read_table(run / "selections.parquet").to_pylist()
    alike = {group: asdict(between(*_both(selected, group, layers))) for group in groups}
    return numbers | {"layers": layers, "between_methods": alike}


def value_activations(model: DiffusionModel, cond: Condition, reach: Reach = "all") -> Iterator[tuple[str, Tensor]]:
    """What each value projection returns, which depends on the text alone: (embeddings, tokens · channels) by name."""
    with torch.no_grad():
        inputs = model.text_inputs(cond)
        for name, layer in model.text_projections(reach).items():
            yield name, layer(inputs).flatten(1)


def feed_forward_activations(
    model: DiffusionModel, cond: Condition, *, seed: int = 0, steps: int = 50, batch: int = ROWS
) -> Iterator[tuple[str, Tensor]]:
    """Inner activations of each feed-forward at the first sampling step and one noise: (embeddings, tokens · inputs).

    Layers come one at a time, each from evaluations of its own: those of a large model do not fit into memory together.
    """
    start = Start.of(model, [seed], steps)
    for name in model.feed_forwards():
        rows: list[Tensor] = []

        def keep(inputs: Tensor, rows: list[Tensor] = rows) -> None:
            rows.append(inputs.flatten(1).cpu())

        with observed(model.denoiser, {name: keep}), torch.no_grad():
            for part in torch.arange(len(cond)).split(batch):
                model.predict(start.x.expand(len(part), -1, -1, -1), start.t, cond[part])
        yield name, torch.cat(rows)


def block_shares(selected: Sequence[Mapping[str, Any]], layers: Mapping[str, int]) -> Floats:
    """How the selected units spread over a method's layers, each in proportion to its size: rows of sum 1 or 0."""
    shares = np.array([[len(one.get(name, ())) / units for name, units in layers.items()] for one in selected])
    spread: Floats = shares / np.maximum(shares.sum(1, keepdims=True), 1e-12)
    return spread


def between(first: Floats, second: Floats) -> Between:
    """How alike two methods' shares over blocks (n, blocks) are: Σ min / Σ max, which is the overlap of 0s and 1s."""
    low = np.minimum(first[:, None], second[None]).sum(2)
    high = np.maximum(first[:, None], second[None]).sum(2)
    alike = np.where(high == 0, 1.0, low / np.maximum(high, 1e-12))
    return Between(mean_over(alike.diagonal()), float(alike[~np.eye(len(alike), dtype=bool)].mean()))


def _both(rows: Sequence[Row], group: str, layers: Sequence[Row]) -> list[Floats]:
    """NeMo's and Wanda's shares over the transformer blocks that both look at, an embedding of the group a row."""
    blocks: dict[str, dict[str, Row]] = {}
    for layer in layers:
        blocks.setdefault(re.split(r"\.(?:attn2|ff)\.", layer["layer"])[0], {})[layer["method"]] = layer
    common = [block for block in blocks.values() if len(block) == len(METHODS)]
    own = [row for row in rows if row["group"] == group]
    shares = []
    for method in METHODS:
        selected: list[dict[str, Any]] = [{} for _ in {row["embedding"] for row in own}]
        for row in own:
            if row["method"] == method:
                selected[row["embedding"]][row["layer"]] = row["units"]
        shares.append(block_shares(selected, {block[method]["layer"]: block[method]["units"] for block in common}))
    return shares


def tsne(points: Tensor, seed: int = 0) -> Floats:
    """A map of the rows in the plane, (n, 2): near rows stay near, and its long distances mean nothing."""
    from sklearn.manifold import TSNE

    flat = points.detach().flatten(1).float().cpu().numpy()
    perplexity = min(30.0, (len(flat) - 1) / 3)
    plane: Floats = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(flat).astype(float)
    return plane


def measure(options: Options) -> list[Row]:
    """The study of each picture; those that are not asked for as they are kept."""
    kept = {row["image"]: row for row in read("locality")}
    results = []
    for picture, inits in zip(PICTURES, (options.inits, options.more), strict=True):
        if options.only in picture and inits:
            results.append(study(picture, inits))
        elif picture in kept:
            results.append(kept[picture])
    return results


def ratio(measure: Row, above: str, below: str) -> str:
    return f"{measure[above]['value'] / measure[below]['value']:.2f}"


def page(results: list[Row]) -> Iterator[str]:
    """Distances and overlaps of every picture, beside the published ones."""
    for numbers in results:
        distance, counts = numbers["distance"], numbers["embeddings"]
        yield (
            f"**{Path(numbers['image']).stem}**: {counts['adversarial']} of {numbers['inits']} random inits lead to "
            f"copies (at least half of the held-out pictures) after {numbers['steps']} updates; share of copies among "
            f"all pictures {show(numbers['copy_rate'])}. The attack moved an embedding by "
            f"{show(numbers['moved'], '.1f')}."
        )
        rows = []
        for group, name in GROUPS.items():
            far = [show(distance[group], ".1f"), ratio(distance, group, "inits")]
            rows.append([name, str(counts[group]), *far])
        yield from ("", *table("embeddings | number | L2 between two | ÷ inits'", rows))
        yield from ("", *by_layer(numbers), "", *by_group(numbers), "")
    yield from published(results)
    yield from ("", "![Map of the embeddings, and both measures by layer](results/locality.svg)")


def by_layer(numbers: Row) -> list[str]:
    columns = ("method", "layer", "distance: same picture", "different pictures", "same ÷ different", "same ÷ inits")
    columns += ("overlap: same picture", "random sets", "different pictures", "random sets", "inits", "selected of")
    rows = []
    for layer in numbers["layers"]:
        far, alike = layer["discrepancy"], layer["agreement"]
        cells = [
            METHODS[layer["method"]],
            short(layer["layer"]),
            show(far["adversarial"], ".1f"),
            show(far["memorized"], ".1f"),
        ]
        cells += [ratio(far, "adversarial", "memorized"), ratio(far, "adversarial", "inits")]
        for group in ("adversarial", "memorized"):
            cells += [show(alike[group]), f"{layer['chance'][group]:.2f}"]
        cells += [show(alike["inits"]), f"{layer['selected']['adversarial']:.0f} of {layer['units']}"]
        rows.append(cells)
    return table(columns, rows)


def by_group(numbers: Row) -> list[str]:
    rows = []
    for group, alike in numbers["between_methods"].items():
        rows.append((GROUPS[group], show(alike["same"]), f"{alike['different']:.2f}"))
    return table(("NeMo's and Wanda's shares over blocks", "of the same embedding", "of two embeddings"), rows)


def published(results: list[Row]) -> list[str]:
    """In how many layers embeddings of one picture lie above prompts of different pictures, ours and read off."""
    rows = []
    for method, paper in PUBLISHED.items():
        for measure, count in paper.items():
            ours = []
            for numbers in results:
                own = [layer[measure] for layer in numbers["layers"] if layer["method"] == method]
                above = sum(m["adversarial"]["value"] > m["memorized"]["value"] for m in own)
                ours.append(f"{above} of {len(own)}")
            rows.append((METHODS[method], measure, *ours, f"{count} of 7"))
    names = [Path(numbers["image"]).stem for numbers in results]
    return table(("layers where same > different", "measure", *names, "published, read off a figure"), rows)


def figure(results: list[Row]) -> None:
    """The first picture's map of embeddings, distances of activations and overlaps, where its run is at hand."""
    embeddings = RUNS / Path(PICTURES[0]).stem / "embeddings.safetensors"
    if not embeddings.exists():
        return
    numbers, groups = results[0], load_file(embeddings)
    plane = tsne(torch.cat([groups[group] for group in GROUPS]))
    ends = np.cumsum([len(groups[group]) for group in GROUPS])[:-1]
    points = dict(zip(GROUPS, np.split(plane, ends), strict=True))
    with rc_context(STYLE | {"figure.facecolor": "white"}):
        canvas = Figure(figsize=(11.5, 6.4), layout="constrained")
        axes = canvas.subplot_mosaic(
            [["map", "d nemo", "d wanda"], ["map", "a nemo", "a wanda"]], width_ratios=[3, 2, 2]
        )
        _map(axes["map"], numbers, points)
        for method, title in (("nemo", "NeMo: value projections"), ("wanda", "Wanda: feed-forwards")):
            layers = [layer for layer in numbers["layers"] if layer["method"] == method]
            _layers(axes[f"d {method}"], layers, "discrepancy")
            _layers(axes[f"a {method}"], layers, "agreement")
            axes[f"d {method}"].set(title=title, ylabel="L2 between activations", ylim=(0, None))
            axes[f"a {method}"].set(ylabel="overlap (IoU) of what is selected", ylim=(-0.03, 1.03))
        canvas.legend(*axes["map"].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
        with atomic(OUT / "locality.svg") as temporary:
            canvas.savefig(temporary, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))


def _map(axes: Axes, numbers: Row, points: Mapping[str, Floats]) -> None:
    for start, end in zip(points["inits"], points["adversarial"], strict=True):
        axes.plot(*zip(start, end, strict=True), color=LINE, linewidth=0.7, zorder=0)
    for group, (colour, marker, _) in reversed(MARKS.items()):
        x, y = points[group].T
        axes.scatter(x, y, s=14, c=colour, marker=marker, linewidths=0.8, label=GROUPS[group])
    axes.plot([], [], color=MUTED, linestyle=":", label="random sets of the same sizes")
    copying = f"{numbers['embeddings']['adversarial']} of {numbers['inits']} inits lead to copies"
    axes.set(xticks=[], yticks=[], title=f"Embeddings (t-SNE), {copying}")
    for spine in axes.spines.values():
        spine.set_visible(False)


def _layers(axes: Axes, layers: Sequence[Row], measure: str) -> None:
    for group, (colour, marker, shift) in MARKS.items():
        intervals = [layer[measure][group] for layer in layers]
        x = [i + shift for i in range(len(layers))]
        lows, highs = [interval["low"] for interval in intervals], [interval["high"] for interval in intervals]
        axes.vlines(x, lows, highs, color=colour, alpha=0.5, linewidth=3)
        values = [interval["value"] for interval in intervals]
        axes.scatter(x, values, s=16, c=colour, marker=marker, linewidths=0.8, zorder=2)
    if measure == "agreement":
        for i, layer in enumerate(layers):
            axes.hlines(layer["chance"]["adversarial"], i - 0.4, i + 0.4, color=MUTED, linestyle=":")
    axes.set_xticks(range(len(layers)), [short(layer["layer"]) for layer in layers], rotation=60, ha="right")


STUDY = Study(
    title="Locality",
    about="What brings one picture back, from many random starts, on the unpruned model: distances of embeddings and "
    "of activations, and the overlap of what NeMo (without refinement) and Wanda (1%) select. Published values are of "
    "a large model and read off a figure: only which side is higher can be compared.",
    page=page,
    measure=measure,
    options={"inits": 100, "more": 30},
    figures=figure,
)
