"""Is the memory of one picture local? The embedding attack from random starts on two pictures of the shipped testbed.

The drawing is of the first picture. A run that was killed continues. The pictures are the first by name of those
planted 100 times and of those planted 1000 times: chosen before any attack. `--inits` random embeddings for the first
picture, `--more` for the second; 0 leaves it out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from common import GUIDANCE, STEPS
from harness import OUT, Options, Row, Study, show, table
from tqdm import tqdm

from unmemorize.core.run import atomic
from unmemorize.core.specs import LocalitySpec
from unmemorize.report.locality import short
from unmemorize.stages.locality import locality

RUNS = Path("runs/locality")
PICTURES = ("verbatim-0100-00-00.png", "verbatim-1000-00-00.png")
# Kowalczuk et al. 2026, read off a figure: layers in which same > different, of 7. Stable Diffusion 1.4.
PUBLISHED = {"nemo": {"discrepancy": 7, "agreement": 3}, "wanda": {"discrepancy": 1, "agreement": 7}}
GROUPS = {
    "adversarial": "embeddings of this picture",
    "inits": "their random inits",
    "memorized": "prompts of different memorized pictures",
    "ordinary": "ordinary prompts",
}
METHODS = {"nemo": "NeMo", "wanda": "Wanda"}


def study(picture: str, inits: int) -> Row:
    spec = LocalitySpec(target=picture, inits=inits, steps=STEPS, guidance=GUIDANCE)
    with tqdm(desc=picture) as bar:

        def progress(stage: str, done: int, total: int) -> None:
            bar.set_postfix_str(f"{stage} {done}/{total}")
            bar.update()

        return locality(spec, RUNS / Path(picture).stem, progress)


def measure(options: Options) -> list[Row]:
    """The study of each picture."""
    return [study(p, n) for p, n in zip(PICTURES, (options.inits, options.more), strict=True) if n]


def ratio(measure: Row, above: str, below: str) -> str:
    return f"{measure[above]['value'] / measure[below]['value']:.2f}"


def page(results: list[Row]) -> Iterator[str]:
    """Distances and overlaps of every picture, beside the published ones."""
    for found in results:
        distance, counts = found["distance"], found["embeddings"]
        yield (
            f"**{Path(found['image']).stem}**: {counts['adversarial']} of {found['inits']} random inits lead to copies "
            f"(at least half of the held-out pictures) after {found['steps']} updates; share of copies among all "
            f"pictures {show(found['copy_rate'])}. The attack moved an embedding by {show(found['moved'], '.1f')}."
        )
        rows = []
        for group, name in GROUPS.items():
            far = [show(distance[group], ".1f"), ratio(distance, group, "inits")]
            rows.append([name, str(counts[group]), *far])
        yield from ("", *table("embeddings | number | L2 between two | ÷ inits'", rows))
        yield from ("", *layers(found), "", *between(found), "")
    yield from published(results)
    yield from ("", "![Map of the embeddings, and both measures by layer](results/locality.svg)")


def layers(found: Row) -> list[str]:
    columns = ("method", "layer", "distance: same picture", "different pictures", "same ÷ different", "same ÷ inits")
    columns += ("overlap: same picture", "random sets", "different pictures", "random sets", "inits", "selected of")
    rows = []
    for layer in found["layers"]:
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


def between(found: Row) -> list[str]:
    rows = [
        (GROUPS[g], show(alike["same"]), f"{alike['different']:.2f}") for g, alike in found["between_methods"].items()
    ]
    return table(("NeMo's and Wanda's shares over blocks", "of the same embedding", "of two embeddings"), rows)


def published(results: list[Row]) -> list[str]:
    """In how many layers embeddings of one picture lie above prompts of different pictures, ours and read off."""
    rows = []
    for method, paper in PUBLISHED.items():
        for measure, count in paper.items():
            ours = []
            for found in results:
                own = [layer[measure] for layer in found["layers"] if layer["method"] == method]
                above = sum(m["adversarial"]["value"] > m["memorized"]["value"] for m in own)
                ours.append(f"{above} of {len(own)}")
            rows.append((METHODS[method], measure, *ours, f"{count} of 7"))
    names = [Path(found["image"]).stem for found in results]
    return table(("layers where same > different", "measure", *names, "published, read off a figure"), rows)


def figure(results: list[Row]) -> None:
    """The first picture's, as its run drew it."""
    with atomic(OUT / "locality.svg") as temporary:
        temporary.write_bytes((RUNS / Path(PICTURES[0]).stem / "locality.svg").read_bytes())


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
