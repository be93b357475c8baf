"""The cheaper and the dearer attack against plain DoRI, on the pruned testbed, each beside its controls.

    python benchmarks/stronger.py [--pictures 9] [--seeds 2] [--only TEXT]

Writes docs/results/stronger.{json,md,svg}. The cheaper attack's settings were chosen on one half of the memorized
pictures; only the other half is measured here. The adaptive attack gets all of them. A setting that is in the JSON
already, for the same models and options, is not measured again.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np
import torch
from common import OUT, REFERENCES, STEPS, halves, kept, often, planted, show, table, write
from erase import SPECS, folder, forget_retrained, made
from matplotlib.figure import Figure
from torch import Tensor

from unmemorize.attack.adaptive import Adaptive, from_prompts
from unmemorize.attack.dori import Dori, dori
from unmemorize.attack.extraction import Extraction, Method, Trial, extraction
from unmemorize.attack.high_noise import HighNoise
from unmemorize.core.choose import evenly
from unmemorize.core.hooks import replaced
from unmemorize.core.run import atomic
from unmemorize.data.ordinary import ordinary_prompts
from unmemorize.jobs import locate
from unmemorize.jobs.subjects import derive
from unmemorize.localize.nemo import NemoSettings, nemo
from unmemorize.localize.reference import Reference
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
    ("NeMo, θ ≥ 0.25", "prompt"),
    ("NeMo, θ ≥ 0.25", "random"),
]
PRUNED = {"Wanda 1%": 0.01, "Wanda 10%": 0.1, "Wanda 40%": 0.4}
NEMO = ("NeMo, θ ≥ 0.25", "NeMo, refined")  # each prompt's own channels, unrefined, and all prompts' together, θ ≥ 1
DEAR = ("none", *SPECS, *reversed(PRUNED), *NEMO)  # what the adaptive attack is made on


@dataclass(frozen=True)
class Weights:
    """A fine-tuned denoiser's weights, applied as an edit is."""

    values: dict[str, Tensor]

    def applied(self, model: UNetModel) -> AbstractContextManager[None]:
        return replaced(model.denoiser, self.values)


def edits_of(model: UNetModel, name: str, prompts: Sequence[str]) -> dict[str, Edit | Weights]:
    """An edit for every memorized prompt, or one for all, called "all"."""
    if name == "none":
        return {"all": Weights({})}
    if name in SPECS:
        return {"all": Weights(dict(load(str(folder(name) / "model")).denoiser.named_parameters()))}
    hashed = fingerprint(model)
    if name in PRUNED:
        return {"all": Edit.of(wanda(model, prompts, sparsity=PRUNED[name]), hashed)}
    usual = usual_activations(model)
    if name == "NeMo, refined":
        return {"all": Edit.of(nemo(model, prompts, usual, NemoSettings(layers="all")), hashed)}
    found = nemo(model, prompts, usual, NemoSettings(layers="all", minimum=0.25, refine=False))
    return {prompt.prompt: Edit.of(found, hashed, prompt=prompt) for prompt in found.per_prompt}


def usual_activations(model: UNetModel) -> Reference:
    """What ordinary prompts activate, which NeMo compares with; kept between runs."""
    everyone = locate.ordinary_prompts(locate.LocateSpec())
    return locate.cached_reference(
        model, everyone, fingerprint(model), locate.cache_folder(), lambda stage, done, total: None
    )


def edit_for(edits: dict[str, Edit | Weights], caption: str, place: int) -> Edit | Weights:
    """The caption's own edit, or, if it has none, one of the others in turn."""
    return edits.get(caption) or list(edits.values())[place % len(edits)]


def at_hand(name: str) -> bool:
    """Whether a model can be attacked: fine-tuned ones are made by benchmarks/erase.py."""
    return name not in SPECS or made(name)


def subjects(model: UNetModel, count: int, *, half: bool = True) -> dict[str, References]:
    """Memorized pictures, by default of the half that nothing was chosen on, and pictures of either control.

    One that the VAE alone cannot bring back near itself is left out: nothing could count as its copy.
    """
    every = planted(often)
    captions = {p.text for p in (halves(every)[1] if half else every)}
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
    edits: dict[str, dict[str, Edit | Weights]]
    seeds: tuple[int, ...]

    def attacked(self, pictures: References, edit: str, init: str, method: Method, curve: Sequence[int]) -> list[dict]:
        """One row a picture: copies and values by number of updates and seed, and evaluations."""
        trial = Trial(tuple(curve), init, seeds=self.seeds, sampling=STEPS)  # type: ignore[arg-type]
        edits, rows = self.edits[edit], []
        each = len(pictures) if len(edits) == 1 else 1
        for i in range(0, len(pictures), each):
            with edit_for(edits, pictures.captions[i] or "", i).applied(self.model):
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


def methods(bench: Bench, prompts: Sequence[str]) -> dict[str, tuple[Method, Sequence[int], str, str]]:
    """Every setting by name: its attack, numbers of updates to look at, edit and start."""
    ordinary, others = (bench.model.encode(some).embeds for some in (ordinary_prompts(50), list(prompts)))
    dear, named = partial(from_prompts, pools=(ordinary, ordinary, others, others)), {}
    for (edit, init), (name, (how, curve)) in product(CASES, CHEAP.items()):
        named[f"{edit} | {init} | {name}"] = (partial(dori, how=how), curve, edit, init)
    for edit in DEAR:
        named[f"{edit} | mixed | adaptive"] = (dear, (Adaptive().steps,), edit, "prompt")
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
        "Pictures planted a hundred times or more, the half on which nothing was chosen, for the adaptive attack all, "
        "beside pictures trained on once and never; each judged against itself, seeds "
        f"{results['options']['seeds']}. Evaluations of one picture, those of the adaptive attack's checks included. "
        "Controls: an attack's last line; the figure has their curves."
    )
    yield from ("", *table(columns.split(" | "), list(lines(results["settings"]))))
    yield from ("", "![Copy rate against denoiser evaluations](results/stronger.svg)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=9, help="of each group")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", default="", help="measure settings whose name contains this")
    options = parser.parse_args()
    model, prompts = load("testbed"), [p.text for p in planted(often)]
    seeds = tuple(range(FIRST_SEED, FIRST_SEED + options.seeds))
    asked = {"pictures": options.pictures, "seeds": list(seeds), "high noise": str(HighNoise())}
    results = kept("stronger", {"fingerprint": fingerprint(model), "options": asked})
    forget_retrained(results)
    bench, groups = Bench(model, {}, seeds), subjects(model, options.pictures)
    every = groups | {GROUPS[0]: subjects(model, len(prompts), half=False)[GROUPS[0]]}
    for name, (method, steps, edit, init) in methods(bench, prompts).items():
        for group, pictures in (every if name.endswith("adaptive") else groups).items():
            done = results["settings"].get(name, {})
            if group in done or options.only not in f"{name} | {group}" or not at_hand(edit):
                continue
            if edit not in bench.edits:
                bench.edits[edit] = edits_of(model, edit, prompts)
            results["settings"][name] = done | {group: bench.attacked(pictures, edit, init, method, steps)}
            write("stronger", results, list(page(results)))
    figure(results["settings"])


if __name__ == "__main__":
    main()
