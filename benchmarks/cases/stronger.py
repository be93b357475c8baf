"""The cheaper and the dearer attack against plain DoRI, on the pruned testbed, each beside its controls.

The cheaper attack's settings were chosen on one half of the memorized pictures; only the other half is measured here.
The adaptive attack gets all of them. A case is one picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import product

import numpy as np
from common import GROUPS, SAMPLER, attacked_pictures, memorized_prompts, references
from harness import Cases, Options, Row, Study, save_figure, show, table
from matplotlib.figure import Figure
from mitigated import NAMES, SAMPLED, Mitigated, at_hand, forget_retrained, mitigated

from unmemorize.attack.adaptive import Adaptive
from unmemorize.attack.dori import Dori
from unmemorize.attack.extraction import SEEDS, Init, Trial, extraction
from unmemorize.attack.high_noise import HighNoise
from unmemorize.core.methods import Attack, Subject, settings
from unmemorize.core.model import DiffusionModel
from unmemorize.core.results import Found
from unmemorize.data.ordinary import ordinary_prompts
from unmemorize.metrics.budget import rates
from unmemorize.metrics.similarity import References, match_targets
from unmemorize.models.load import load

CHEAP = {"DoRI": (Dori(), (5, 10, 17, 25, 50)), "high noise": (HighNoise(), (16, 32, HighNoise().updates))}
SEARCHED: list[tuple[str, Init]] = [
    ("Wanda 40%", "random"),
    ("Wanda 40%", "prompt"),
    ("NeMo, θ ≥ 0.25", "prompt"),
    ("NeMo, θ ≥ 0.25", "random"),
]
AS_IT_CAME = ("none", *SAMPLED)  # the searched model's weights are unchanged: one search serves all three


@dataclass(frozen=True)
class Once(Attack):
    """An attack, searched once for the same pictures and returned again later; only for the same weights."""

    inner: Attack
    known: dict[tuple[int, ...], Found] = field(default_factory=dict)

    def attack(self, subject, latents, start, *, seeds, keep=()) -> Found:
        key = tuple(seeds)  # an attack's seeds come from the pictures' names
        if key not in self.known:
            self.known[key] = self.inner.attack(subject, latents, start, seeds=seeds, keep=keep)
        return self.known[key]


@dataclass(frozen=True)
class Attacked:
    """A model, an attack on it, where that starts, and the numbers of updates to look at."""

    edit: str
    start: Init
    attack: Attack
    curve: Sequence[int]

    def on(self, subject: Subject, what: Mitigated, picture: References, place: int, seeds: tuple[int, ...]) -> Row:
        """Copies of one picture by number of updates and seed, and evaluations; `place` is its own in its group."""
        judge = partial(match_targets, references=references())
        with what.of(picture.captions[0], place).applied(subject) as attacked:
            trial = Trial(tuple(self.curve), self.start, seeds=seeds)
            found, _ = extraction(attacked, picture, self.attack, judge, trial)
        return {
            "spent": found.spent,
            "copied": found.copied[0, 0].tolist(),
            "ratio": found.values[0, 0].mean(1).round(3).tolist(),
            "moved": found.moved[0, 0].round(1).tolist(),
        }


def attacks(model: DiffusionModel) -> dict[str, Attacked]:
    """Every attack by name."""
    dear = Adaptive().prepared(model.encode(memorized_prompts()), model.encode(ordinary_prompts(50)))
    shared, named = Once(dear), {}
    for (edit, start), (name, (attack, curve)) in product(SEARCHED, CHEAP.items()):
        named[f"{edit} | {start} | {name}"] = Attacked(edit, start, attack, curve)
    for edit in NAMES:
        attack = shared if edit in AS_IT_CAME else dear
        named[f"{edit} | mixed | adaptive"] = Attacked(edit, "prompt", attack, (dear.updates,))
    return named


def cases(options: Options) -> Cases:
    """Every attack on every picture."""
    model = load("testbed-ladder")
    subject = Subject(model, SAMPLER)
    seeds = tuple(range(SEEDS[0], SEEDS[0] + options.seeds))
    groups = attacked_pictures(model, options.pictures)
    every = groups | {GROUPS[0]: attacked_pictures(model, len(memorized_prompts()), half=False)[GROUPS[0]]}
    made = cache(partial(mitigated, subject))
    named = {}
    for name, attacked in attacks(model).items():
        for group, pictures in (every if name.endswith("adaptive") else groups).items():
            for place, picture in enumerate(pictures.names if at_hand(attacked.edit) else ()):
                named[f"{name} | {group} | {picture}"] = (
                    lambda rows, attacked=attacked, picture=pictures[[place]], place=place: attacked.on(
                        subject, made(attacked.edit), picture, place, seeds
                    )
                )
    asked = {"pictures": options.pictures, "seeds": list(seeds), "high noise": settings(HighNoise())}
    return Cases({"fingerprint": model.fingerprint, "options": asked}, named, forget_retrained)


def grouped(rows: Row) -> dict[str, dict[str, list[Row]]]:
    """The rows by attack and group."""
    found: dict[str, dict[str, list[Row]]] = {}
    for key, row in rows.items():
        name, group, _ = key.rsplit(" | ", 2)
        found.setdefault(name, {}).setdefault(group, []).append(row)
    return found


def curve(rows: Sequence[Row]) -> list[Row]:
    """Copy rate with its interval by evaluations, and the mean ratio that is judged."""
    copied = np.array([row["copied"] for row in rows])[:, None]
    ratio, moved = (np.mean([row[key] for row in rows], axis=0) for key in ("ratio", "moved"))
    points = zip(rows[0]["spent"], rates(copied), ratio, moved, strict=True)
    return [{"evaluations": e, "rate": r, "ratio": float(d), "moved": float(m)} for e, r, d, m in points]


def page(results: Row) -> Iterator[str]:
    """Every attack on memorized pictures by evaluations, and its controls in the end."""
    yield (
        "Pictures planted a hundred times or more, the half on which nothing was chosen, for the adaptive attack "
        "all, beside pictures trained on once and never; each judged against itself, seeds "
        f"{results['options']['seeds']}. Evaluations of one picture, those of the adaptive attack's checks included. "
        "Controls: an attack's last line; the figure has their curves. *Adaptive, own prompt not from noise* is the "
        "attack as it was before 2026-11-26, when the picture's own prompt was searched at high noise alone; "
        "fine-tuned models, which are not shipped, were not attacked again."
    )
    lines = []
    for name, groups in grouped(results["settings"]).items():
        for group, rows in groups.items():
            points = curve(rows)
            for point in points if group == "memorized" else points[-1:]:
                cells = [f"{point['evaluations']:.0f}", show(point["rate"]), f"{point['ratio']:.2f}"]
                lines.append([*name.split(" | "), f"{group} ({len(rows)})", *cells, f"{point['moved']:.0f}"])
    columns = "model | start | attack | pictures | evaluations | copy rate | ratio | moved"
    yield from ("", *table(columns, lines))
    yield from ("", "![Copy rate against denoiser evaluations](results/stronger.svg)")


def figure(results: Row) -> None:
    """Copy rate against evaluations, a panel a model and start; dashed: the controls."""
    found = grouped(results["settings"])
    shown = [case for case in SEARCHED if any(name.startswith(" | ".join(case)) for name in found)]
    canvas = Figure(figsize=(3.6 * len(shown), 3.2), layout="constrained")
    panels = canvas.subplots(1, max(len(shown), 1), squeeze=False)[0]
    for axes, case in zip(panels, shown, strict=False):
        for colour, name in zip(("C0", "C1"), CHEAP, strict=True):
            groups = found.get(" | ".join([*case, name]), {})
            for style, group in zip(("-", "--", ":"), GROUPS, strict=True):
                points = curve(groups[group]) if group in groups else []
                x, y = [p["evaluations"] for p in points], [p["rate"].value for p in points]
                axes.plot(x, y, style, color=colour, marker="o", markersize=3, label=f"{name}, {group}")
        axes.set(title=", from ".join(case), xlabel="denoiser evaluations", ylabel="copy rate", ylim=(-0.02, 1.02))
    panels[0].legend(frameon=False, fontsize="x-small")
    save_figure(canvas, "stronger.svg")


STUDY = Study(
    title="Cheaper and dearer attacks",
    about="DoRI at high noise against plain DoRI by denoiser evaluations, and the adaptive attack, all beside "
    "controls.",
    page=page,
    measure=cases,
    options={"pictures": 9, "seeds": 2},
    figures=figure,
)
