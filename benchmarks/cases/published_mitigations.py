"""Mitigations at inference on the panel: copies left, what alignment costs, and what ordinary prompts suffer.

Every setting is measured on branch A. Of each method, the one that is best there is measured on C and D: that of the
smallest loss of alignment among those that leave at most a fifth of the copies, else the one that leaves fewest.
Alignment is compared with that of the same prompts in a branch whose dose of them is 0: there nothing
draws the picture towards a training picture that fits its caption better than anything ordinary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial

import numpy as np
import torch
from branches import OFTEN, REPORTING, SHIPPED, forget_retrained, ordinary, pictures, places_of, references, subject_of
from common import are_copies, match_closest
from harness import Cases, Options, Row, Study, numbers_of, save_figure, show, table
from matplotlib.figure import Figure

from unmemorize.core.methods import Mitigation, parse
from unmemorize.core.records import Interval
from unmemorize.metrics.frontier import frontier_area
from unmemorize.metrics.ranking import TAILS, share_interval
from unmemorize.metrics.ssim import scales_for, ssim
from unmemorize.mitigate.edit import Edit
from unmemorize.study.effects import latents_of
from unmemorize.testbed.alignment import Alignment
from unmemorize.testbed.embedded import shipped_panel
from unmemorize.testbed.panel import Entry

SEED = 300
LEFT = 0.2  # of the copies, at most, for a setting to be chosen by its alignment
ROUNDS = 1000  # of the bootstrap
NONE = "none"
# Each method as its paper has it, then with other settings. Of those with updates, as many as a CPU can afford.
METHODS: Mapping[str, Sequence[str]] = {
    "guard": ("guard", *(f"guard:false_alarms=0.05,under={u}" for u in (0.0, 0.05, 0.2, 0.5))),
    "embedding-noise": tuple(f"embedding-noise:scale={scale}" for scale in (0.1, 0.5, 1.0, 2.0)),
    "random-words": tuple(f"random-words:count={count}" for count in (1, 4, 8)),
    "random-numbers": tuple(f"random-numbers:count={count}" for count in (1, 4, 8)),
    "repeated-words": tuple(f"repeated-words:count={count}" for count in (1, 4, 8)),
    "static-transition": tuple(f"static-transition:until={until}" for until in (0.733, 0.6, 0.5, 0.4)),
    "opposite-guidance": tuple(f"opposite-guidance:until={until}" for until in (0.733, 0.85, 0.9)),
    "dynamic-transition": ("dynamic-transition",),
    "batch-wise-noise": ("batch-wise-noise", "batch-wise-noise:gamma=1.4"),
    "per-sample-noise": ("per-sample-noise:iterations=20",),
    "sail": ("sail:candidates=1",),
    "attention-reweighting": ("attention-reweighting", "attention-reweighting:scale=2.0"),
    "attractive-repulsive": ("attractive-repulsive", "attractive-repulsive:threshold=0.01,repulsion=0.0"),
    "padding-masked": ("padding-masked", "padding-masked:share=1.0"),
    "padding-replaced": ("padding-replaced",),
    "prompt-reanchoring": ("prompt-reanchoring", "prompt-reanchoring:false_alarms=0.05"),
    "dissimilarity-guidance": tuple(f"dissimilarity-guidance:near={near}" for near in (0.5, 0.6, 0.7, 0.8)),
}


@cache
def memorized(branch: str) -> list[Entry]:
    """The pictures that were planted often in a branch."""
    return [entry for entry in shipped_panel().entries if entry.kind == "verbatim" and entry.dose(branch) >= OFTEN]


@cache
def never(branch: str) -> dict[str, str]:
    """A reporting branch of dose 0 for each of the branch's memorized pictures that has one."""
    without = {}
    for entry in memorized(branch):
        others = [other for other in REPORTING if entry.dose(other) == 0]
        if others:
            without[entry.id] = others[0]
    return without


@cache
def known() -> torch.Tensor:
    """The training pictures' latents: every branch has the same VAE."""
    return latents_of(subject_of(REPORTING[0]).model, references().pixels)


@cache
def alignment(branch: str) -> Alignment:
    """What alignment is measured by: the panel's own picture model."""
    return Alignment(subject_of(branch).model)


@cache
def unmitigated(branch: str) -> torch.Tensor:
    """The pictures of the ordinary prompts by a branch as it came."""
    generated, _ = ordinary()
    return pictures(subject_of(branch), generated, list(range(len(generated))))


def measured(branch: str, spelled: str, rows: Row) -> Row:
    """By memorized prompt whether it copies and its alignment; ordinary pictures beside those without mitigation."""
    subject, align = subject_of(branch), alignment(branch)
    generated, calibrating = ordinary()
    mitigation: Mitigation = Edit({}, {}, "") if spelled == NONE else parse("mitigation", spelled)
    encoded = subject.model.encode(calibrating)
    fitted = mitigation.fitted(subject, ordinary=encoded, pictures=known(), seeds=range(len(calibrating)))
    entries = memorized(branch)
    texts = [entry.prompts[0] for entry in entries]
    with fitted.applied(subject) as changed, subject.model.counted() as cost:
        images = pictures(changed, texts, [SEED] * len(texts))
        spent = cost.forward / len(texts)
        harmed = pictures(changed, generated, list(range(len(generated))))
    whole = unmitigated(branch)
    copied = are_copies(match_closest(images, [places_of(entry) for entry in entries], references()))
    names = [entry.id for entry in entries]
    own = references()[[places_of(entry)[0] for entry in entries]].images
    return {
        "fingerprint": subject.model.fingerprint,
        "acts": "" if spelled == NONE else mitigation.acts,
        "copied": dict(zip(names, copied, strict=True)),
        "alignment": dict(zip(names, align(images, texts).tolist(), strict=True)),
        "like_own": ssim(images, own, scales_for(*own.shape[-2:])).mean().item(),
        "changed": [not same for same in (harmed == whole).flatten(1).all(dim=1).tolist()],
        "similarity": ssim(whole, harmed, scales_for(*whole.shape[-2:])).tolist(),
        "ordinary_alignment": [align(part, generated).mean().item() for part in (whole, harmed)],
        "evaluations": spent,
    }


def baseline(branch: str, rows: Row) -> Row:
    """The alignment of prompts in a reporting branch whose dose of them is 0, where another branch has them often."""
    prompts: dict[str, str] = {}
    for other in SHIPPED:
        for entry in memorized(other):
            if never(other).get(entry.id) == branch:
                prompts[entry.id] = entry.prompts[0]
    texts = list(prompts.values())
    images = pictures(subject_of(branch), texts, [SEED] * len(texts))
    values = alignment(branch)(images, texts).tolist()
    return {"fingerprint": subject_of(branch).model.fingerprint, "alignment": dict(zip(prompts, values, strict=True))}


def cases(options: Options) -> Cases:
    """Every setting on A; dose 0, the model as it came, and the chosen setting of each method on C and D."""
    named = {f"{branch} | dose 0": partial(baseline, branch) for branch in REPORTING}
    for text in (NONE, *(text for texts in METHODS.values() for text in texts)):
        named[f"A | {text}"] = partial(measured, "A", text)
    for branch in REPORTING:
        named[f"{branch} | {NONE}"] = partial(measured, branch, NONE)
        for name in METHODS:
            named[f"{branch} | {name}"] = partial(measured_chosen, branch, name)
    return Cases({"seed": SEED}, named, forget_retrained)


def measured_chosen(branch: str, name: str, rows: Row) -> Row:
    """`measured` of a method in the setting that is best on A."""
    text = chosen(rows, METHODS[name])
    return measured(branch, text, rows) | {"setting": text}


def copy_rate(rows: Sequence[Row]) -> Interval:
    """The share of memorized pictures that come back, each at one seed, over branches."""
    copied = [list(row["copied"].values()) for row in rows]
    return share_interval(np.concatenate(copied)[:, None].astype(int))


def alignment_lost(settings: Row, rows: Mapping[str, Row]) -> Interval:
    """The loss of alignment over branches, a share, against the same prompts at dose 0; resampled by picture."""
    under, without = [], []
    for branch, row in rows.items():
        for name, other in never(branch).items():
            under.append(row["alignment"][name])
            without.append(settings[f"{other} | dose 0"]["alignment"][name])
    return share_lost(under, without)


def share_lost(under: Sequence[float], without: Sequence[float]) -> Interval:
    """By which share a mean is below another one's, of pairs; resampled by pair."""
    pairs = np.array([under, without])
    draws = np.random.default_rng(0).integers(pairs.shape[1], size=(ROUNDS, pairs.shape[1]))
    means = pairs[:, draws].mean(axis=2)
    low, high = np.quantile(1 - means[0] / means[1], TAILS)
    return Interval(float(1 - pairs[0].mean() / pairs[1].mean()), float(low), float(high))


def chosen(settings: Row, texts: Sequence[str]) -> str:
    """The setting that is best on branch A."""
    return min(texts, key=partial(cost_on_a, settings))


def best_first(settings: Row) -> list[str]:
    """The methods, in the order of their best settings on branch A."""
    return sorted(METHODS, key=lambda name: cost_on_a(settings, chosen(settings, METHODS[name])))


def cost_on_a(settings: Row, text: str) -> tuple[bool, float]:
    """What settings are ordered by: the loss of alignment, or the copies where more than `LEFT` of them are left."""
    row = settings[f"A | {text}"]
    left = copy_rate([row]).value / copy_rate([settings[f"A | {NONE}"]]).value
    return (False, alignment_lost(settings, {"A": row}).value) if left <= LEFT else (True, left)


def page(numbers: Row) -> Iterator[str]:
    """A row a method on C and D, the chosen settings; then every setting on A, where it was chosen."""
    settings = numbers["settings"]
    rows = []
    for name in (NONE, *METHODS):
        by_branch = {branch: settings.get(f"{branch} | {name}") for branch in REPORTING}
        if None in by_branch.values():
            continue
        own = list(by_branch.values())
        rate, lost = numbers_of(copy_rate(own)), numbers_of(alignment_lost(settings, by_branch))
        like = np.mean([row["like_own"] for row in own])
        cells = [f"`{own[0].get('setting', name)}`", own[0]["acts"], show(rate), f"{like:.2f}", show(lost, "+.1%")]
        rows.append((rate[0], [*cells, *harm(own), area_on_a(settings, name)]))
    rows.sort(key=lambda row: row[0])
    columns = (
        "mitigation, as chosen on A | acts on | copies | likeness to them | alignment lost | "
        "ordinary pictures changed | their likeness | their alignment | evaluations | area on A"
    )
    yield from table(columns, [cells for _, cells in rows])
    yield from ("", "![Copies left and alignment lost, every setting](results/published-mitigations.svg)", "")
    lines = []
    for texts in on_a(settings).values():
        best = chosen(settings, texts)
        for text in texts:
            row = settings[f"A | {text}"]
            marked = f"**`{text}`**" if text == best else f"`{text}`"
            lost = numbers_of(alignment_lost(settings, {"A": row}))
            lines.append([marked, show(numbers_of(copy_rate([row]))), f"{row['like_own']:.2f}", show(lost, "+.1%")])
    yield "All settings on A; the chosen ones are set in bold:"
    yield from ("", *table("mitigation | copies | likeness to them | alignment lost", lines))


def on_a(settings: Row) -> dict[str, list[str]]:
    """The settings of each method that are measured on A."""
    measured: dict[str, list[str]] = {}
    for name, texts in METHODS.items():
        whole = [text for text in texts if f"A | {text}" in settings]
        if whole and f"A | {NONE}" in settings:
            measured[name] = whole
    return measured


def area_on_a(settings: Row, name: str) -> str:
    """The area of a method's settings on branch A, of what is left of the copies against the alignment that is lost."""
    if name == NONE:
        return "1.00"
    before = copy_rate([settings[f"A | {NONE}"]]).value
    rows = [settings[f"A | {text}"] for text in METHODS[name]]
    lost = [alignment_lost(settings, {"A": row}).value for row in rows]
    return f"{frontier_area(lost, [copy_rate([row]).value / before for row in rows]):.2f}"


def harm(rows: Sequence[Row]) -> list[str]:
    """Shares of ordinary pictures that are not the same bytes, how like they are, their alignment, evaluations."""
    changed = np.mean([row["changed"] for row in rows])
    likeness = np.mean([row["similarity"] for row in rows])
    before, after = np.mean([row["ordinary_alignment"] for row in rows], axis=0)
    return [f"{changed:.2f}", f"{likeness:.2f}", f"{after / before - 1:+.1%}", f"{rows[0]['evaluations']:.0f}"]


def figure(numbers: Row) -> None:
    """Copies left against alignment lost: on A a line a method and a point a setting, on C and D the chosen one."""
    settings = numbers["settings"]
    canvas = Figure(figsize=(9.6, 4.4), layout="constrained")
    axes = canvas.subplots(1, 2, sharey=True)
    for number, (name, texts) in enumerate(on_a(settings).items()):
        style = {"color": f"C{number % 10}", "marker": "os^D"[number // 10], "markersize": 4, "linewidth": 1}
        rows = [settings[f"A | {text}"] for text in texts]
        lost = np.array([100 * alignment_lost(settings, {"A": row}).value for row in rows])
        left = np.array([copy_rate([row]).value for row in rows])
        order = np.argsort(lost)
        axes[0].plot(lost[order], left[order], label=name, **style)
        by_branch = {branch: settings.get(f"{branch} | {name}") for branch in REPORTING}
        if None not in by_branch.values():
            lost = 100 * alignment_lost(settings, by_branch).value
            axes[1].plot([lost], [copy_rate(list(by_branch.values())).value], **style)
    for axis, title in zip(axes, ("A, every setting", "C and D, the settings chosen on A"), strict=True):
        axis.axvline(5, color="0.7", linewidth=0.8, linestyle="--")
        axis.axhline(LEFT, color="0.7", linewidth=0.8, linestyle="--")
        axis.set(title=title, xlabel="alignment lost against dose 0, %", ylim=(-0.03, 1.03))
    axes[0].set(ylabel="copies left")
    canvas.legend(frameon=False, fontsize="x-small", loc="outside right center")
    save_figure(canvas, "published-mitigations.svg")


STUDY = Study(
    title="Mitigations at inference, on the panel",
    about="Pictures planted a hundred times or more in C and D, 48 in each, one seed; settings were chosen on A. "
    "*Alignment lost* is against the same prompts in the branch where they were never planted (24 of each branch). "
    "*Ordinary pictures* are 24 of each branch, at prompts that nothing was calibrated on: how many are not the same "
    "bytes, and how their alignment changes. *Likeness* is structural similarity, which no method looks at: to the "
    "training picture, of every picture, copy or not; of ordinary pictures, to those of the model as it came. *Area*: "
    "the mean, over losses of alignment from 0 to 25%, of the smallest share of the copies that a setting of no larger "
    "loss leaves, over all settings on A; 1 is no gain. None of these was attacked here ([attacks]"
    "(#attacks-on-the-panel)).",
    page=page,
    measure=cases,
    figures=figure,
)
