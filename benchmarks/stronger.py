"""The cheaper and the dearer attack against plain DoRI, on the pruned testbed, each beside its controls.

    python benchmarks/stronger.py [--pictures 9] [--dear 6] [--seeds 2] [--only TEXT]

Writes docs/results/stronger.{json,md,svg}. The cheaper attack's settings were chosen on one half of the memorized
pictures; only the other half is measured here. A setting that is in the JSON already, for the same model and options,
is not measured again.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
from common import OUT, REFERENCES, STEPS, halves, kept, often, planted, show, table, write
from matplotlib.figure import Figure
from torch import Tensor

from unmemorize.attack.adaptive import Adaptive, adaptive, mixed
from unmemorize.attack.dori import Dori, dori
from unmemorize.attack.extraction import Extraction, Method, Trial, extraction
from unmemorize.attack.high_noise import HighNoise
from unmemorize.core.choose import evenly
from unmemorize.core.hooks import replaced
from unmemorize.core.results import Attack
from unmemorize.core.run import atomic
from unmemorize.data.ordinary import ordinary_prompts
from unmemorize.jobs import locate
from unmemorize.jobs.subjects import derive
from unmemorize.localize.nemo import NemoSettings, nemo
from unmemorize.localize.wanda import wanda
from unmemorize.metrics.budget import rates
from unmemorize.metrics.similarity import PIXELS, References, match_pixels, match_targets
from unmemorize.mitigate.weights import Edit
from unmemorize.models.load import fingerprint, load
from unmemorize.models.unet import UNetModel

FIRST_SEED = 100  # of the pictures that are judged; those of the adaptive attack's checks are others
GROUPS = ("memorized", "trained on once", "never trained on")
CHEAP = {"DoRI": (Dori(), (5, 10, 17, 25, 50)), "high noise": (HighNoise(), (16, 32, HighNoise().steps))}
CASES = [
    ("Wanda 40%", "random"),
    ("Wanda 40%", "prompt"),
    ("erased", "random"),
    ("erased", "prompt"),
    ("NeMo, θ ≥ 0.25", "prompt"),
    ("NeMo, θ ≥ 0.25", "random"),
]
ERASED = Path("runs/erase/erase/model")  # by benchmarks/erase.py


@dataclass(frozen=True)
class Weights:
    """A fine-tuned denoiser's weights, applied as an edit is."""

    values: dict[str, Tensor]

    def applied(self, model: UNetModel) -> AbstractContextManager[None]:
        return replaced(model.denoiser, self.values)


def edits_of(model: UNetModel, name: str, prompts: Sequence[str]) -> list[Edit | Weights]:
    """One edit for all pictures, or one for every memorized prompt; none for the model as it came."""
    if name == "none":
        return []
    if name == "erased":
        return [Weights(dict(load(str(ERASED)).denoiser.named_parameters()))]
    hashed = fingerprint(model)
    if name.startswith("Wanda"):
        return [Edit.of(wanda(model, prompts, sparsity=0.4), hashed)]
    spec = locate.LocateSpec()
    usual = locate.cached_reference(
        model, locate.ordinary_prompts(spec), hashed, locate.cache_folder(), lambda stage, done, total: None
    )
    found = nemo(model, prompts, usual, NemoSettings(layers="all", minimum=0.25, refine=False))
    return [Edit.of(found, hashed, prompt=prompt) for prompt in found.per_prompt]


def subjects(model: UNetModel, count: int) -> dict[str, References]:
    """The half of the memorized pictures that nothing was chosen on, and as many of either control.

    A control that the VAE alone cannot bring back near itself is left out: nothing could count as its copy.
    """
    captions = {p.text for p in halves(planted(often))[1]}
    negatives = {p.text for p in planted(lambda p: p.kind == "negative")}
    memorized, once = (
        REFERENCES[[i for i, caption in enumerate(REFERENCES.captions) if caption in some]]
        for some in (captions, negatives)
    )
    unseen = derive(once, lambda images: match_pixels(images, REFERENCES))
    return {
        group: _spread(pictures, count, model)
        for group, pictures in zip(GROUPS, (memorized, once, unseen), strict=True)
    }


def _spread(pictures: References, count: int, model: UNetModel) -> References:
    some = pictures[evenly(len(pictures), 3 * count)]
    with torch.no_grad():
        again = match_targets(model.decode(model.invert(some.images)), some, REFERENCES)
    near = [i for i, match in enumerate(again) if PIXELS(match.value)]
    return some[near[:: max(len(near) // count, 1)][:count]]


@dataclass(frozen=True)
class Bench:
    """What every setting is measured with."""

    model: UNetModel
    edits: dict[str, list[Edit | Weights]]
    groups: dict[str, References]
    seeds: tuple[int, ...]

    def attacked(self, pictures: References, edit: str, init: str, method: Method, curve: Sequence[int]) -> list[dict]:
        """One row a picture: copies and values by number of updates and seed, and evaluations."""
        trial = Trial(tuple(curve), init, seeds=self.seeds, sampling=STEPS)  # type: ignore[arg-type]
        edits, rows = self.edits[edit], []
        each = len(pictures) if len(edits) == 1 else 1
        for i in range(0, len(pictures), each):
            with edits[i % len(edits)].applied(self.model):
                part = pictures[list(range(i, min(i + each, len(pictures))))]
                judge = partial(match_targets, references=REFERENCES)
                rows += to_rows(extraction(self.model, part, method, judge, trial)[0])
        return rows


def to_rows(found: Extraction) -> list[dict]:
    """One row a picture."""
    return [
        {
            "picture": name,
            "spent": found.spent,
            "copied": found.copied[i, 0].tolist(),
            "ratio": found.values[i, 0].mean(1).round(3).tolist(),
            "moved": found.moved[i, 0].round(1).tolist(),
        }
        for i, name in enumerate(found.names)
    ]


def dear(pools: Sequence[Tensor]) -> Method:
    """The adaptive attack as a method that starts from a prompt; it has no curve but its end, called update 1."""

    def attack(model: UNetModel, latents: Tensor, init: Tensor, *, seeds: Sequence[int], keep: Sequence[int]) -> Attack:
        small = [seed % 2**20 for seed in seeds]
        found = adaptive(model, latents, mixed(init, pools, seeds=small, random=3), seeds=small, how=Adaptive())
        return replace(found, embeds={0: init, 1: found.found})

    return attack


def methods(bench: Bench, prompts: Sequence[str]) -> dict[str, tuple[Method, Sequence[int], str, str]]:
    """Every setting by name: its attack, numbers of updates to look at, edit and start."""
    ordinary, others = (bench.model.encode(some).embeds for some in (ordinary_prompts(50), list(prompts)))
    named = {}
    for (edit, init), (name, (how, curve)) in product(CASES, CHEAP.items()):
        named[f"{edit} | {init} | {name}"] = (partial(dori, how=how), curve, edit, init)
    for edit in dict.fromkeys(edit for edit, _ in CASES):
        named[f"{edit} | mixed | adaptive"] = (dear([ordinary, ordinary, others, others]), (1,), edit, "prompt")
    return named


def curve(rows: Sequence[dict]) -> list[dict]:
    """Copy rate with its interval by evaluations, and the mean ratio that is judged."""
    copied = np.array([row["copied"] for row in rows])[:, None]
    ratio, moved = (np.mean([row[key] for row in rows], axis=0) for key in ("ratio", "moved"))
    points = zip(rows[0]["spent"], rates(copied), ratio, moved, strict=True)
    return [{"evaluations": e, "rate": r, "ratio": float(d), "moved": float(m)} for e, r, d, m in points]


def lines(settings: dict) -> Iterator[list[str]]:
    """Start and end of every setting, a line a group."""
    for name, groups in settings.items():
        for group, rows in groups.items():
            points = curve(rows)
            for point in points if group == "memorized" else points[-1:]:
                cells = [f"{point['evaluations']:.0f}", show(point["rate"], 2), f"{point['ratio']:.2f}"]
                yield [*name.split(" | "), f"{group} ({len(rows)})", *cells, f"{point['moved']:.0f}"]


def figure(settings: dict) -> None:
    """Copy rate against evaluations, a panel a model and start; dashed: the controls."""
    cases = [case for case in CASES if any(name.startswith(" | ".join(case)) for name in settings)]
    canvas = Figure(figsize=(3.6 * len(cases), 3.2), layout="constrained")
    panels = canvas.subplots(1, max(len(cases), 1), squeeze=False)[0]
    for axes, case in zip(panels, cases, strict=False):
        for colour, name in zip(("C0", "C1"), CHEAP, strict=True):
            groups = settings.get(" | ".join([*case, name]), {})
            for style, group in zip(("-", "--", ":"), GROUPS, strict=True):
                points = curve(groups[group]) if group in groups else []
                x, y = [p["evaluations"] for p in points], [p["rate"].value for p in points]
                axes.plot(x, y, style, color=colour, marker="o", markersize=3, label=f"{name}, {group}")
        axes.set(title=", from ".join(case), xlabel="denoiser evaluations", ylabel="copy rate", ylim=(-0.02, 1.02))
    panels[0].legend(frameon=False, fontsize="x-small")
    with atomic(OUT / "stronger.svg") as temporary:
        canvas.savefig(temporary, format="svg", metadata={"Date": None})


def page(results: dict) -> Iterator[str]:
    columns = "model | start | attack | pictures | evaluations | copy rate | ratio | moved"
    yield (
        "Pictures planted a hundred times or more, the half on which nothing was chosen, beside pictures trained on "
        f"once and never; each judged against itself, seeds {results['options']['seeds']}. Evaluations of one picture, "
        "those of the adaptive attack's checks included. Controls: an attack's last line; the figure has their curves."
    )
    yield from ("", *table(columns.split(" | "), list(lines(results["settings"]))))
    yield from ("", "![Copy rate against denoiser evaluations](results/stronger.svg)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=9, help="of each group")
    parser.add_argument("--dear", type=int, default=8, help="pictures of each group for the adaptive attack")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", default="", help="measure settings whose name contains this")
    options = parser.parse_args()
    model, prompts = load("testbed"), [p.text for p in planted(often)]
    seeds = tuple(range(FIRST_SEED, FIRST_SEED + options.seeds))
    asked = {"pictures": options.pictures, "dear": options.dear, "seeds": list(seeds), "high noise": str(HighNoise())}
    results = kept("stronger", {"fingerprint": fingerprint(model), "options": asked})
    bench = Bench(model, {}, subjects(model, options.pictures), seeds)
    for name, (method, steps, edit, init) in methods(bench, prompts).items():
        for group, pictures in bench.groups.items():
            done = results["settings"].get(name, {})
            if group in done or options.only not in f"{name} | {group}" or (edit == "erased" and not ERASED.exists()):
                continue
            if edit not in bench.edits:
                bench.edits[edit] = edits_of(model, edit, prompts)
            some = pictures[evenly(len(pictures), options.dear)] if name.endswith("adaptive") else pictures
            results["settings"][name] = done | {group: bench.attacked(some, edit, init, method, steps)}
            write("stronger", results, list(page(results)))
    figure(results["settings"])


if __name__ == "__main__":
    main()
