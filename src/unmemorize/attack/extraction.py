"""Attack pictures, generate from what was found, and see which come back: by number of updates, over several starts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unmemorize.core.batches import CODED, inverted
from unmemorize.core.errors import UserError
from unmemorize.core.methods import Attack, Subject
from unmemorize.core.model import Condition, DiffusionModel, joined
from unmemorize.core.results import Found, Match
from unmemorize.core.sample import generate, normal
from unmemorize.metrics.similarity import References

Init = Literal["prompt", "random", "ordinary"]
Judge = Callable[[Tensor, References], list[Match]]  # pictures, and the target of each
Floats = NDArray[np.float64]
Texts = NDArray[np.str_]
CURVE = (0, 1, 10, 25, 50, 150, 500)
FIRST_SEED = 100  # of generation: an attack's own start at 2³²


def judging_seeds(pictures: int) -> tuple[int, ...]:
    """Seeds that mitigations and attacks are judged on, one a picture: none that an audit generates with."""
    return tuple(range(FIRST_SEED, FIRST_SEED + pictures))


SEEDS = judging_seeds(4)


@dataclass(frozen=True)
class Trial:
    """How pictures are attacked and judged.

    Attributes:
        curve: Numbers of updates after which pictures are generated; the last is the attack's own.
        init: Where an attack starts: the picture's prompt, N(0, I), or an ordinary prompt.
        restarts: Attacks of a picture, each with its own noise, and its own start where that is random.
        seeds: Generation seeds.
    """

    curve: tuple[int, ...] = (0, 1, 10, 25, 50)
    init: Init = "prompt"
    restarts: int = 1
    seeds: tuple[int, ...] = SEEDS


@dataclass(frozen=True)
class Extraction:
    """What an attack brought back of n pictures, after each number of updates at which it kept its embeddings.

    Attributes:
        names: The pictures.
        steps: Numbers of updates.
        seeds: Generation seeds.
        values: What the criterion judged, (n, restarts, steps, seeds).
        verdicts: Verbatim, template or none, (n, restarts, steps, seeds).
        moved: L2 distance of the embedding from its start, (n, restarts, steps).
        start: L2 norm of the start, (n, restarts).
        original_values: The same judgement of the prompts themselves, (n, seeds); NaN where none is known.
        original_verdicts: Likewise, (n, seeds).
        evaluations: Of the denoiser, in one attack of one picture.
        mirrored: Which pictures are copies of the target's mirror image, (n, restarts, steps, seeds).
        original_mirrored: Likewise of the prompts' own, (n, seeds).
    """

    names: tuple[str, ...]
    steps: tuple[int, ...]
    seeds: tuple[int, ...]
    values: Floats
    verdicts: Texts
    moved: Floats
    start: Floats
    original_values: Floats
    original_verdicts: Texts
    evaluations: float
    mirrored: NDArray[np.bool_]
    original_mirrored: NDArray[np.bool_]

    @property
    def copied(self) -> NDArray[np.bool_]:
        """Which generated pictures are copies of their target, (n, restarts, steps, seeds)."""
        copied: NDArray[np.bool_] = self.verdicts != "none"
        return copied

    @property
    def spent(self) -> list[float]:
        """Evaluations that an attack of one picture had made after each of `steps`."""
        return [self.evaluations * step / max(self.steps[-1], 1) for step in self.steps]


@dataclass(frozen=True)
class Evidence:
    """Results to look at: last embeddings (n, restarts, tokens, width), and pictures (n, 3, h, w) in [0, 1].

    `attacked` was generated with the last embedding of the first restart, `original` with the prompt, both with the
    first seed.
    """

    embeds: Tensor
    attacked: Tensor
    original: Tensor


def extraction(
    subject: Subject,
    targets: References,
    attack: Attack,
    judge: Judge,
    trial: Trial = Trial(),
    *,
    ordinary: Sequence[str] = (),
) -> tuple[Extraction, Evidence]:
    """Attack every picture, and judge what its embeddings give over seeds that the attack never used.

    What a picture gives does not depend on which others are asked for: its attacks' seeds come from its name. Edits and
    hooks that are active stay so.

    Args:
        subject: The model, under whatever is applied to it, and how pictures are drawn from it.
        targets: The pictures; their captions are their prompts.
        attack: The attack, prepared where it has other starts.
        judge: The comparison of pictures with their own targets.
        trial: Starts, restarts, and how pictures are generated.
        ordinary: Prompts to start from where `trial.init` is `ordinary`.

    Raises:
        UserError: A start from the prompt is asked for and a picture has none.
    """
    model = subject.model
    latents = torch.cat([inverted(model, part) for part in targets.batches(CODED)])
    steps = sorted({0, *trial.curve})
    original = _judge(subject, model.encode(targets.prompts), targets, judge, trial)
    restarts = []
    for number in range(trial.restarts):
        start = starts(model, targets, trial.init, number, ordinary)
        seeds = [_seed(name, number) for name in targets.names]
        result = attack.attack(subject, latents, start, seeds=seeds, keep=steps)
        begun = result.conditions.get(0, start)  # an attack of some positions starts from another embedding
        # A start from the prompt gives the prompt's own pictures: they are made once.
        known = {0: original} if trial.init == "prompt" and torch.equal(begun.embeds, start.embeds) else {}
        judged: dict[int, _Judged] = {}
        moved: dict[int, Floats] = {}
        for step in steps:
            if step in result.conditions:  # not every attack has something to keep on the way
                cond = result.conditions[step]
                judged[step] = known.get(step) or _judge(subject, cond, targets, judge, trial)
                moved[step] = _distance(begun, cond)
        restarts.append(_Restart(result, _norm(begun.embeds), judged, moved))
    return _numbers(targets, trial, original, restarts), _evidence(original, restarts)


@dataclass(frozen=True)
class _Restart:
    """One attack on all pictures.

    Attributes:
        result: What it found.
        start: L2 norm of every start, (n,).
        judged: What the pictures give, by number of updates.
        moved: L2 distance of every embedding from its start, (n,), by number of updates.
    """

    result: Found
    start: Floats
    judged: dict[int, _Judged]
    moved: dict[int, Floats]


def _numbers(targets: References, trial: Trial, original: _Judged, restarts: Sequence[_Restart]) -> Extraction:
    values = np.array([[judged.values for judged in restart.judged.values()] for restart in restarts])
    verdicts = np.array([[judged.verdicts for judged in restart.judged.values()] for restart in restarts])
    mirrored = np.array([[judged.mirrored for judged in restart.judged.values()] for restart in restarts])
    moved = np.array([list(restart.moved.values()) for restart in restarts])
    unknown = np.array([[caption is None] for caption in targets.captions])
    spent = sum(restart.result.evaluations for restart in restarts)
    # From (restarts, steps, n, …) to (n, restarts, steps, …).
    return Extraction(
        names=targets.names,
        steps=tuple(restarts[-1].judged),
        seeds=trial.seeds,
        values=np.moveaxis(values, 2, 0),
        verdicts=np.moveaxis(verdicts, 2, 0),
        moved=np.moveaxis(moved, 2, 0),
        start=np.array([restart.start for restart in restarts]).T,
        original_values=np.where(unknown, np.nan, original.values),
        original_verdicts=np.where(unknown, "none", original.verdicts),
        evaluations=spent / (len(targets) * trial.restarts),
        mirrored=np.moveaxis(mirrored, 2, 0),
        original_mirrored=original.mirrored & ~unknown,
    )


def _evidence(original: _Judged, restarts: Sequence[_Restart]) -> Evidence:
    last = max(restarts[-1].judged)
    embeds = torch.stack([restart.result.conditions[last].embeds for restart in restarts], dim=1)
    return Evidence(embeds.cpu(), restarts[0].judged[last].first_pictures, original.first_pictures)


def starts(
    model: DiffusionModel, targets: References, init: Init, restart: int = 0, ordinary: Sequence[str] = ()
) -> Condition:
    """The conditions that attacks start from, one row a picture.

    Raises:
        UserError: A prompt is asked for and not known.
    """
    seeds = [_seed(name, restart, "start") for name in targets.names]
    if init == "random":
        like = model.encode([""]).embeds[0]
        return Condition(normal(like, seeds))
    if init == "ordinary":
        return model.encode([ordinary[seed % len(ordinary)] for seed in seeds])
    require_prompts(targets)
    return model.encode(targets.prompts)


def require_prompts(targets: References) -> None:
    """Refuse pictures without a prompt.

    Raises:
        UserError: A picture has none.
    """
    for name, caption in zip(targets.names, targets.captions, strict=True):
        if caption is None:
            raise UserError(
                f"{name}: its prompt is not known: write it to a .txt file of the same name or to metadata.jsonl, or "
                "start with --init random"
            )


def _seed(name: str, *parts: int | str) -> int:
    """A seed above those of generation, from a picture's name and what tells its draws apart."""
    hashed = hashlib.sha256(repr((name, *parts)).encode()).digest()
    return 2**32 + int.from_bytes(hashed[:6], "big")


@dataclass(frozen=True)
class _Judged:
    """Values, verdicts and which are mirrored (n, seeds), and the first seed's pictures (n, 3, h, w)."""

    values: Floats
    verdicts: Texts
    mirrored: NDArray[np.bool_]
    first_pictures: Tensor


def _judge(subject: Subject, cond: Condition, targets: References, judge: Judge, trial: Trial) -> _Judged:
    """Generate from every condition at every seed, and compare each picture with its own target."""
    n, g = len(cond), len(trial.seeds)
    images = generate(subject.model, cond.repeat(g), seeds=trial.seeds * n, sampler=subject.sampler)
    pictures = images.float().cpu()
    rows = torch.arange(n).repeat_interleave(g)
    matches = judge(pictures, targets[rows.tolist()])
    values = np.array([m.value for m in matches]).reshape(n, g)
    verdicts = np.array([m.verdict for m in matches]).reshape(n, g)
    mirrored = np.array([m.mirrored and m.copied for m in matches]).reshape(n, g)
    return _Judged(values, verdicts, mirrored, pictures[::g])


def _distance(one: Condition, other: Condition) -> Floats:
    """L2 distance of the embeddings of each row, (n,); the shorter ones are padded."""
    embeds = joined([one, other]).embeds
    return _norm(embeds[len(one) :] - embeds[: len(one)])


def _norm(embeds: Tensor) -> Floats:
    norms: Floats = embeds.double().flatten(1).norm(dim=1).cpu().numpy()
    return norms
