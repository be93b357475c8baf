"""What inference-time mitigations leave of the copies, and what they cost in alignment: ours and the baselines.

    python benchmarks/mitigation.py

Memorized prompts are those planted a hundred times or more. Every setting runs on all of them; none is chosen. A copy
is one of the prompt's own training picture; copies of any training picture stand beside it. Writes
docs/results/mitigation.{json,md} and mitigation.svg.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from common import (
    GUIDANCE,
    OUT,
    SAMPLER,
    STEPS,
    are_copies,
    halves,
    match_any,
    match_own,
    often,
    planted,
    similarity,
    table,
    write,
)
from matplotlib.figure import Figure
from tqdm import tqdm

from unmemorize.core.methods import Mitigation, Subject
from unmemorize.core.model import Condition
from unmemorize.core.sample import first_unconditional, generate, generators
from unmemorize.detect.noise import NoiseGap
from unmemorize.jobs.guard import Guard
from unmemorize.metrics.ranking import rate_interval
from unmemorize.mitigate.edit import Edit
from unmemorize.mitigate.guard import lower_at_start
from unmemorize.mitigate.perturb import EmbeddingNoise, Perturbation, RandomNumbers, RandomWords, RepeatedWords
from unmemorize.models.load import load
from unmemorize.testbed.alignment import Alignment

SEEDS = (300, 301)


@dataclass(frozen=True)
class Lower(Perturbation):
    """The guard's descent on every picture, whatever its magnitude."""

    target: float
    iterations: int

    def changed(self, model, cond: Condition, seeds) -> Condition:
        empty, t = first_unconditional(model, seeds=seeds, steps=STEPS), model.schedule(STEPS).timesteps[0]
        lowered = lower_at_start(model, cond, empty, t, target=self.target, iterations=self.iterations)
        return cond.with_embeds(lowered.embeds)


def changes(ordinary: float) -> dict[tuple[str, str], Mitigation]:
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


def run(model, mitigation: Mitigation, prompts, align: Alignment) -> dict:
    """Copy rate, similarity and alignment of one setting, and its denoiser evaluations a picture."""
    originals, seeds = [p.text for p in prompts for _ in SEEDS], list(SEEDS) * len(prompts)
    with mitigation.applied(Subject(model, SAMPLER)) as subject, model.counted() as cost:
        made = generate(model, model.encode(originals), seeds=seeds, sampler=subject.sampler)
    own, nearest = match_own(made, originals), match_any(made)
    hits = np.reshape(are_copies(own), (len(prompts), -1)).sum(1)
    rate = rate_interval(hits.tolist(), [len(SEEDS)] * len(prompts), [p.cluster for p in prompts])
    return {
        "copy_rate": [rate.value, rate.low, rate.high],
        "any_picture": float(np.mean(are_copies(nearest))),
        "similarity": float(np.mean([similarity(match) for match in own])),
        "alignment": align(made, originals).mean().item(),
        "evaluations": cost.forward / len(originals),
    }


def guarded(model, groups: dict, calibration, align: Alignment, false_alarms: float) -> dict:
    """The guard as users meet it, calibrated on one half of the negatives, on prompts it has not seen."""
    pipe = model.pipe
    pipe.set_progress_bar_config(disable=True)
    guard = Guard(pipe, ordinary=[p.text for p in calibration], false_alarms=false_alarms)
    how = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "pt"}
    result: dict = {"false_alarms": false_alarms}
    for name, prompts in groups.items():
        texts, seeds = [p.text for p in prompts for _ in SEEDS], list(SEEDS) * len(prompts)
        acted, images, plain = [], [], []
        for i in range(0, len(texts), 16):
            part, streams = texts[i : i + 16], seeds[i : i + 16]
            images.append(guard(part, generator=generators(streams), **how).images)
            acted += guard.outcome.acted
            same = not any(guard.outcome.acted)  # then the pipeline alone gives the same bytes
            plain.append(images[-1] if same else pipe(part, generator=generators(streams), **how).images)
        made, alone = torch.cat(images), torch.cat(plain)
        result[name] = {
            "acted": float(np.mean(acted)),
            "copy_rate": float(np.mean(are_copies(match_own(made, texts)))),
            "copy_rate_without": float(np.mean(are_copies(match_own(alone, texts)))),
            "any_picture": float(np.mean(are_copies(match_any(made)))),
            "any_picture_without": float(np.mean(are_copies(match_any(alone)))),
            "alignment": align(made, texts).mean().item(),
            "alignment_without": align(alone, texts).mean().item(),
        }
    limits = guard.outcome.limits
    return result | {"threshold": limits.threshold, "target": limits.target}


def figure(numbers: dict, path) -> None:
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
    chart.savefig(path, metadata={"Date": None})


def main() -> None:
    model = load("testbed")
    align = Alignment(model)
    memorized, negatives = planted(often), planted(lambda p: p.kind == "negative")
    calibration, fresh = halves(negatives)
    groups = {"verbatim, 100 copies or more": memorized} | {
        kind: planted(lambda p, kind=kind: p.kind == kind) for kind in ("repeat", "template")
    }
    groups["fresh ordinary"] = fresh
    guards = [guarded(model, groups, calibration, align, share) for share in (0.01, 0.05)]
    found = NoiseGap().score(Subject(model, SAMPLER), model.encode([p.text for p in calibration]), seeds=SEEDS)
    ordinary = found.by_seed.median().item()
    every = tqdm(changes(ordinary).items(), "settings")
    rows = [{"method": m, "strength": s} | run(model, change, memorized, align) for (m, s), change in every]
    numbers = {"settings": rows, "guards": guards, "ordinary_magnitude": ordinary}
    figure(numbers, OUT / "mitigation.svg")
    write("mitigation", numbers, page(numbers, guards[0]["fresh ordinary"]["alignment_without"]))


def page(numbers: dict, ordinary: float) -> list[str]:
    """Both tables and the figure."""
    rows, base = numbers["settings"], numbers["settings"][0]["alignment"]
    lines = [
        [
            row["method"],
            row["strength"],
            "{:.2f} [{:.2f}, {:.2f}]".format(*row["copy_rate"]),
            f"{row['any_picture']:.2f}",
            f"{row['similarity']:.2f}",
            f"{row['alignment']:.3f} ({row['alignment'] / base - 1:+.0%})",
            f"{row['evaluations']:.0f}",
        ]
        for row in rows
    ]
    head = ["method", "strength", "copy rate", "of any picture", "similarity", "alignment", "evaluations a picture"]
    guards = [
        [
            f"{g['false_alarms']:.0%} ({g['threshold']:.2f}; {g['target']:.2f})",
            name,
            f"{r['acted']:.1%}",
            f"{r['copy_rate_without']:.2f} → {r['copy_rate']:.2f}",
            f"{r['any_picture_without']:.2f} → {r['any_picture']:.2f}",
            f"{r['alignment_without']:.3f} → {r['alignment']:.3f}",
        ]
        for g in numbers["guards"]
        for name, r in g.items()
        if isinstance(r, dict)
    ]
    heads = ["false alarms (threshold; target)", "prompts", "acted on", "copy rate", "of any picture", "alignment"]
    return [
        *table(head, lines),
        "",
        f"For comparison, what the model makes of ordinary prompts has an alignment of {ordinary:.3f}.",
        "",
        "![Similarity against alignment](results/mitigation.svg)",
        "",
        "The guard as it comes, calibrated on one half of the negatives:",
        "",
        *table(heads, guards),
    ]


if __name__ == "__main__":
    main()
