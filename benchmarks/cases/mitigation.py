"""What inference-time mitigations leave of the copies, and what they cost in alignment: ours and the baselines.

Memorized prompts are those planted a hundred times or more. Every setting runs on all of them; none is chosen. A copy
is one of the prompt's own training picture; copies of any training picture stand beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from common import (
    GUIDANCE,
    SAMPLER,
    STEPS,
    are_copies,
    each_at,
    halves,
    match_any,
    match_own,
    of_kind,
    often,
    planted,
    rate_of,
)
from harness import Options, Row, Study, save_figure, show, table
from matplotlib.figure import Figure
from tqdm import tqdm

from unmemorize.core.methods import Mitigation, Subject
from unmemorize.core.model import Condition
from unmemorize.core.sample import first_unconditional, generate, generators
from unmemorize.detect.noise import NoiseGap
from unmemorize.mitigate.edit import Edit
from unmemorize.mitigate.guard import lower_at_start
from unmemorize.mitigate.perturb import EmbeddingNoise, Perturbation, RandomNumbers, RandomWords, RepeatedWords
from unmemorize.models.load import load
from unmemorize.stages.guard import Guard
from unmemorize.testbed.alignment import Alignment

SEEDS = (300, 301)
SHOWN = {"copy_rate": ".2f", "any_picture": ".2f", "alignment": ".3f"}  # of the guard


@dataclass(frozen=True)
class Lower(Perturbation):
    """The guard's descent on every picture, whatever its magnitude."""

    target: float
    iterations: int

    def changed(self, model, cond: Condition, seeds) -> Condition:
        empty, t = first_unconditional(model, seeds=seeds, steps=STEPS), model.schedule(STEPS).timesteps[0]
        lowered = lower_at_start(model, cond, empty, t, target=self.target, iterations=self.iterations)
        return cond.with_embeds(lowered.embeds)


def mitigations(ordinary: float) -> dict[tuple[str, str], Mitigation]:
    """Every setting, by method and strength."""

    every: dict[tuple[str, str], Mitigation] = {("none", ""): Edit({}, {}, "")}
    for target in (2.0, 1.5, 1.25, 1.0, 0.75, 0.5):
        every["lower the magnitude", f"{target}× ordinary"] = Lower(target * ordinary, 10)
    for target in (0.75, 0.6, 0.5):
        every["lower the magnitude, 40 updates", f"{target}× ordinary"] = Lower(target * ordinary, 40)
    for n in (1, 2, 4, 8):
        every["random words", str(n)] = RandomWords(count=n)
        every["random numbers", str(n)] = RandomNumbers(count=n)
        every["repeated words", str(n)] = RepeatedWords(count=n)
    for scale in (0.1, 0.3, 1.0, 2.0):
        every["embedding noise", str(scale)] = EmbeddingNoise(scale=scale)
    return every


def left(model, mitigation: Mitigation, prompts, align: Alignment) -> Row:
    """Copy rate, similarity and alignment of one setting, and its denoiser evaluations a picture."""
    texts, seeds = each_at([p.text for p in prompts], SEEDS)
    with mitigation.applied(Subject(model, SAMPLER)) as subject, model.counted() as cost:
        made = generate(model, model.encode(texts), seeds=seeds, sampler=subject.sampler)
    own, nearest = match_own(made, texts), match_any(made)
    return {
        "copy_rate": rate_of(are_copies(own), len(SEEDS), [p.cluster for p in prompts]),
        "any_picture": float(np.mean(are_copies(nearest))),
        # 1 - distance ratio, 0 or more: from 0.5 on it is a copy.
        "similarity": float(np.mean([max(1 - match.value, 0.0) for match in own])),
        "alignment": align(made, texts).mean().item(),
        "evaluations": cost.forward / len(texts),
    }


def guarded(model, groups: dict, calibration, align: Alignment, false_alarms: float) -> Row:
    """The guard as users meet it, calibrated on one half of the negatives, on prompts it has not seen."""
    pipe = model.pipe
    pipe.set_progress_bar_config(disable=True)
    guard = Guard(pipe, ordinary=[p.text for p in calibration], false_alarms=false_alarms)
    how = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "pt"}
    result: Row = {"false_alarms": false_alarms}
    for name, prompts in groups.items():
        texts, seeds = each_at([p.text for p in prompts], SEEDS)
        acted, images, plain = [], [], []
        for i in range(0, len(texts), 16):
            part, streams = texts[i : i + 16], seeds[i : i + 16]
            images.append(guard(part, generator=generators(streams), **how).images)
            acted += guard.outcome.acted
            same = not any(guard.outcome.acted)  # then the pipeline alone gives the same bytes
            plain.append(images[-1] if same else pipe(part, generator=generators(streams), **how).images)
        row = {"acted": float(np.mean(acted))}
        for suffix, parts in (("", images), ("_without", plain)):
            made = torch.cat(parts)
            row[f"copy_rate{suffix}"] = float(np.mean(are_copies(match_own(made, texts))))
            row[f"any_picture{suffix}"] = float(np.mean(are_copies(match_any(made))))
            row[f"alignment{suffix}"] = align(made, texts).mean().item()
        result[name] = row
    limits = guard.outcome.limits
    return result | {"threshold": limits.threshold, "target": limits.target}


def measure(options: Options) -> Row:
    """Every setting on the memorized prompts, and the guard on all kinds."""
    model = load("testbed-ladder")
    align, memorized = Alignment(model), planted(often)
    calibration, fresh = halves(of_kind("negative"))
    groups = {"verbatim, 100 copies or more": memorized}
    groups |= {"repeat": of_kind("repeat"), "template": of_kind("template"), "fresh ordinary": fresh}
    guards = [guarded(model, groups, calibration, align, share) for share in (0.01, 0.05)]
    found = NoiseGap().score(Subject(model, SAMPLER), model.encode([p.text for p in calibration]), seeds=SEEDS)
    ordinary = found.by_seed.median().item()
    every = tqdm(mitigations(ordinary).items(), "settings")
    rows = [{"method": m, "strength": s} | left(model, way, memorized, align) for (m, s), way in every]
    return {"settings": rows, "guards": guards, "ordinary_magnitude": ordinary}


def page(numbers: Row) -> Iterator[str]:
    """Both tables and the figure."""
    base = numbers["settings"][0]["alignment"]
    rows = []
    for row in numbers["settings"]:
        cells = [show(row["copy_rate"]), f"{row['any_picture']:.2f}", f"{row['similarity']:.2f}"]
        cells += [f"{row['alignment']:.3f} ({row['alignment'] / base - 1:+.0%})", f"{row['evaluations']:.0f}"]
        rows.append([row["method"], row["strength"], *cells])
    head = "method | strength | copy rate | of any picture | similarity | alignment | evaluations a picture"
    ordinary = numbers["guards"][0]["fresh ordinary"]["alignment_without"]
    yield from table(head, rows)
    yield from ("", f"For comparison, what the model makes of ordinary prompts has an alignment of {ordinary:.3f}.")
    yield from ("", "![Similarity against alignment](results/mitigation.svg)", "")
    yield from ("The guard as it comes, calibrated on one half of the negatives:", "")
    rows = []
    for guard in numbers["guards"]:
        limits = f"{guard['false_alarms']:.0%} ({guard['threshold']:.2f}; {guard['target']:.2f})"
        for name, row in guard.items():
            if isinstance(row, dict):
                cells = [f"{row['acted']:.1%}"]
                for what, form in SHOWN.items():
                    cells.append(f"{row[f'{what}_without']:{form}} → {row[what]:{form}}")
                rows.append([limits, name, *cells])
    yield from table(
        "false alarms (threshold; target) | prompts | acted on | copy rate | of any picture | alignment", rows
    )


def figure(numbers: Row) -> None:
    """Similarity against alignment, one line a method."""
    chart = Figure(figsize=(6, 4), layout="constrained")
    axis = chart.subplots()
    for method in dict.fromkeys(row["method"] for row in numbers["settings"]):
        rows = [row for row in numbers["settings"] if row["method"] == method]
        style = {"color": "black", "marker": "*", "markersize": 12} if method == "none" else {"marker": "o"}
        axis.plot([r["alignment"] for r in rows], [r["similarity"] for r in rows], label=method, **style)
    axis.axhline(0.5, color="grey", linestyle=":", linewidth=1)
    axis.set(xlabel="alignment with the prompt", ylabel="similarity to the prompt's own training picture")
    axis.legend(frameon=False)
    save_figure(chart, "mitigation.svg")


STUDY = Study(
    title="Mitigation at inference",
    about="Prompts planted a hundred times or more, two seeds. Targets are multiples of the median of ordinary "
    "prompts; similarity is one minus the distance ratio, a copy is 0.5 or more; alignment is the cosine of picture "
    "and prompt in the testbed's own CLIP.",
    page=page,
    measure=measure,
    figures=figure,
)
