"""What a change of weights did: copies for the prompts, copies after an attack, and quality on ordinary prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from unmemorize.core.batches import inverted
from unmemorize.core.methods import Attack, Subject
from unmemorize.core.model import Condition, DiffusionModel
from unmemorize.core.sample import generate, normal
from unmemorize.metrics.quality import Change, compare, fid, kid, mean_of
from unmemorize.metrics.ranking import share_interval
from unmemorize.metrics.similarity import References, unit
from unmemorize.models.pipeline import PipelineModel
from unmemorize.study.copies import CopyCheck
from unmemorize.testbed.alignment import Alignment

Init = Literal["prompt", "random"]
BATCH = 16


@dataclass(frozen=True)
class Subjects:
    """What is measured: memorized pictures, and ordinary ones that no training saw, with their prompts' clusters.

    `near` says which of the ordinary prompts are neighbours of memorized ones.
    """

    memorized: References
    ordinary: References
    clusters: tuple[str, ...]
    near: tuple[bool, ...]


@dataclass(frozen=True)
class Judge:
    """How it is measured: what a copy is, features, fit of picture and caption if known, and seeds."""

    copies: CopyCheck
    features: Callable[[Tensor], Tensor]
    alignment: Callable[[Tensor, Sequence[str]], Tensor] | None
    seeds: tuple[int, ...]


def judge_of(model: DiffusionModel, copies: CopyCheck, seeds: tuple[int, ...], *, testbed: bool) -> Judge:
    """The testbed's own picture model for an embedded model; latents of the model's VAE, pooled to 4×4, for others."""
    if testbed:
        assert isinstance(model, PipelineModel)  # as every embedded model is
        clip = Alignment(model)
        return Judge(copies, clip.pictures, clip, seeds)
    return Judge(copies, lambda images: vae_features(model, images), None, seeds)


def vae_features(model: DiffusionModel, images: Tensor) -> Tensor:
    """The latents of pictures averaged in a 4×4 grid, (n, 16·c): coarse colour and layout, and no more."""
    return F.adaptive_avg_pool2d(inverted(model, images).float(), 4).flatten(1)


def pictures(subject: Subject, cond: Condition, seeds: Sequence[int]) -> Tensor:
    """One picture a row of `cond`, (n, 3, h, w)."""
    return generate(subject.model, cond, seeds=seeds, sampler=subject.sampler).float().cpu()


def copies_of(subject: Subject, cond: Condition, targets: References, judge: Judge) -> Tensor:
    """Which pictures are copies of their own target, a row of `cond` each, at every seed: (rows, seeds), 0 or 1."""
    count = len(judge.seeds)
    images = pictures(subject, cond.repeat(count), list(judge.seeds) * len(cond))
    rows = torch.arange(len(cond)).repeat_interleave(count)
    matches = judge.copies.against(images, targets[rows.tolist()])
    return torch.tensor([match.copied for match in matches]).reshape(len(cond), -1).long()


def attacked_copies(
    subject: Subject, memorized: References, init: Init, judge: Judge, *, seed: int, attack: Attack
) -> Tensor:
    """Which pictures are copies after an attack on every memorized picture, (pictures, seeds), 0 or 1."""
    model = subject.model
    latents = latents_of(model, memorized.pixels)
    start = model.encode(memorized.prompts)
    seeds = [seed + k for k in range(len(latents))]
    if init == "random":
        start = Condition(normal(start.embeds[0], seeds))
    result = attack.attack(subject, latents, start, seeds=seeds)
    return copies_of(subject, result.last, memorized, judge)


def attacked_from_both(
    subject: Subject, memorized: References, judge: Judge, *, seed: int, attack: Attack
) -> dict[str, Tensor]:
    """`attacked_copies` from the prompts and from N(0, I), by start."""
    starts: tuple[Init, ...] = ("prompt", "random")
    return {init: attacked_copies(subject, memorized, init, judge, seed=seed, attack=attack) for init in starts}


def rate_of(hits: Tensor) -> list[float]:
    """The share of copies in (pictures, seeds), with its 95% interval over pictures: value, low and high."""
    share = share_interval(hits)
    return [share.value, share.low, share.high]


def latents_of(model: DiffusionModel, pixels: Tensor) -> Tensor:
    """The latents of pictures, bytes or in [0, 1]: (n, c, h, w)."""
    return torch.cat([inverted(model, unit(part)) for part in pixels.split(BATCH)])


def measure(subject: Subject, subjects: Subjects, judge: Judge) -> dict[str, Tensor]:
    """Copies of the memorized prompts, (pictures, seeds), and features and fit of pictures of the ordinary ones.

    Of every ordinary prompt as many pictures are made as there are seeds: all prompts once, then all again.
    """
    prompts = subjects.ordinary.prompts * len(judge.seeds)
    model, memorized = subject.model, subjects.memorized
    own = model.encode(memorized.prompts)
    measured = {"copies": copies_of(subject, own, memorized, judge)}
    images = pictures(subject, model.encode(prompts), range(len(prompts)))
    measured["features"] = torch.cat([judge.features(part) for part in images.split(BATCH)]).cpu()
    if judge.alignment is not None:
        ends = range(0, len(images), BATCH)
        parts = [judge.alignment(images[i : i + BATCH], prompts[i : i + BATCH]) for i in ends]
        measured["alignment"] = torch.cat(parts)
    return measured


def quality(before: dict[str, Tensor], after: dict[str, Tensor], subjects: Subjects, judge: Judge) -> dict[str, Any]:
    """KID, FID and alignment before and after, over all ordinary prompts and over the neighbours of memorized ones."""
    real = torch.cat([judge.features(part) for part in subjects.ordinary.batches(BATCH)]).cpu()
    near = torch.tensor(subjects.near)
    every = _quality(before, after, real, torch.ones_like(near), subjects.clusters)
    return {"ordinary": every, "neighbours": _quality(before, after, real, near, subjects.clusters)}


def _quality(
    before: dict[str, Tensor], after: dict[str, Tensor], real: Tensor, prompts: Tensor, clusters: Sequence[str]
) -> dict[str, Any]:
    """`quality` over the chosen prompts, (n,) bool; there are as many pictures of each as there are seeds."""
    count, times = int(prompts.sum()), len(before["features"]) // len(prompts)
    rows = prompts.repeat(times)
    chosen = [c for c, row in zip(clusters, prompts.tolist(), strict=True) if row] * times
    changes: dict[str, Any] = {"prompts": count}
    for name, distance in (("kid", kid), ("fid", fid)):
        originals = real[prompts].numpy()
        earlier = distance(before["features"][rows].numpy(), originals)
        later = distance(after["features"][rows].numpy(), originals)
        changes[name] = _shown(compare(earlier, later, chosen, count))
    if "alignment" in before:
        earlier = mean_of(before["alignment"][rows].numpy())
        later = mean_of(after["alignment"][rows].numpy())
        changes["alignment"] = _shown(compare(earlier, later, chosen, count))
    return changes


def _shown(change: Change) -> dict[str, list[float]]:
    """Value and 95% interval of the measure before, after, and of its change."""
    parts = {"before": change.before, "after": change.after, "change": change.change}
    return {name: [part.value, part.low, part.high] for name, part in parts.items()}
