"""The adaptive attack: many starts, searched long in two ways, ten times DoRI's cost, and of all what comes closest."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unmemorize.attack.dori import Dori, dori
from unmemorize.attack.high_noise import FromNoise, HighNoise
from unmemorize.core.model import Condition, DiffusionModel, joined
from unmemorize.core.results import Attack
from unmemorize.core.sample import generators, trajectory


@dataclass(frozen=True)
class Adaptive:
    """Settings: updates of a search, the searches in turn, and seeds, sampling steps and guidance of a check.

    With eight starts this is 4,000 evaluations a picture, ten times what DoRI takes. The check's seeds have to differ
    from those that copies are judged on: the best of many tries looks like success.
    """

    steps: int = 186
    ways: tuple[Dori, ...] = (HighNoise(), FromNoise())
    seeds: tuple[int, ...] = (7001, 7002, 7003, 7004)
    sampling: int = 8
    guidance: float = 7.5


def adaptive(
    model: DiffusionModel,
    latents: Tensor,
    starts: Sequence[Condition],
    *,
    seeds: Sequence[int],
    how: Adaptive = Adaptive(),
    rows: int = 64,
) -> Attack:
    """Search long from every start; keep, of all ends and starts, the one whose samples come nearest to the picture.

    Near is the mean distance between the picture's latent and samples of a few steps, from seeds of their own. Starts
    take turns in how they are searched from: what a defence hides from one loss may show in another.

    Paper: the search is DoRI's (Kowalczuk et al. 2026).

    Args:
        model: The model to attack, with its edits applied.
        latents: The pictures' latents, (n, c, h, w).
        starts: What to start from, each with one row a picture.
        seeds: One a picture, for noise and noise levels.
        how: Settings.
        rows: The largest number of rows in one evaluation of the denoiser.

    Returns:
        The nearest condition of each picture; in place of losses its distance, (1, n); and the denoiser evaluations.
    """
    ends = list(starts)
    with model.counted() as cost:
        for turn, way in enumerate(how.ways[: len(starts)]):
            chosen = list(range(len(starts)))[turn :: len(how.ways)]
            streams = [seed * 1000 + k for seed in seeds for k in chosen]
            each = latents.repeat_interleave(len(chosen), dim=0)
            start = _by_picture([starts[k] for k in chosen])
            last = dori(model, each, start, seeds=streams, how=replace(way, steps=how.steps), rows=rows).last
            for place, k in enumerate(chosen):
                ends[k] = last[slice(place, None, len(chosen))]
        candidates = _by_picture([*starts, *ends])
        near, best = _distances(model, latents, candidates, how, rows).min(dim=1)
    chosen_rows = torch.arange(len(latents)) * (len(starts) + len(ends)) + best.cpu()
    return Attack({how.steps: candidates[chosen_rows]}, near[None], cost.forward)


def _by_picture(parts: Sequence[Condition]) -> Condition:
    """Conditions with one row a picture each: all rows of the first picture, then of the second."""
    order = torch.arange(len(parts) * len(parts[0])).reshape(len(parts), -1).T.flatten()
    return joined(parts)[order]


def from_prompts(
    model: DiffusionModel,
    latents: Tensor,
    init: Condition,
    *,
    seeds: Sequence[int],
    keep: Collection[int] = (),
    pools: Sequence[Condition],
    how: Adaptive = Adaptive(),
) -> Attack:
    """`adaptive` from the pictures' own prompts, draws from N(0, I), and prompts of pools.

    As a method that `extraction` takes: on the way there is nothing to keep but the prompts, as after 0 updates.
    """
    attack = adaptive(model, latents, mixed(init, pools, seeds=seeds), seeds=seeds, how=how)
    return replace(attack, conditions={0: init} | attack.conditions)


def mixed(own: Condition, pools: Sequence[Condition], *, seeds: Sequence[int]) -> list[Condition]:
    """Starts for each picture: its own prompt twice, two draws from N(0, I), and one prompt of every pool.

    Each kind of start comes twice in a row, because `adaptive` searches every second start at high noise and the others
    from noise: the own prompt has to be searched in both ways. Name a pool twice for the same reason.

    Args:
        own: The pictures' own prompts, one row a picture.
        pools: Encoded prompts to draw from.
        seeds: One a picture.

    Returns:
        4 + pools conditions with one row a picture.
    """
    normal, numbers = [], []
    for stream in generators(seeds):
        normal.append(torch.randn(2, *own.embeds.shape[1:], generator=stream))
        numbers.append([int(torch.randint(len(pool), (1,), generator=stream)) for pool in pools])
    drawn = torch.stack(normal, dim=1).to(own.embeds)
    starts = [own, own, Condition(drawn[0]), Condition(drawn[1])]
    for place, pool in enumerate(pools):
        starts.append(pool[[row[place] for row in numbers]])
    return starts


def _distances(model: DiffusionModel, latents: Tensor, cond: Condition, how: Adaptive, rows: int) -> Tensor:
    """Root mean square distance between each candidate's samples and the picture, over the check's seeds: (n, k)."""
    n, checks = len(latents), len(how.seeds)
    k = len(cond) // n
    each, seeds = cond.repeat(checks), how.seeds * (n * k)
    targets = latents.repeat_interleave(k * checks, dim=0)
    distances, size = [], max(rows // 2, 1)
    for i in range(0, len(each), size):
        part = slice(i, i + size)
        path = trajectory(model, each[part], seeds=seeds[part], steps=how.sampling, guidance=how.guidance)
        for step in path:
            last = step.x_next
        distances.append((last - targets[part]).square().mean(dim=(1, 2, 3)).sqrt())
    return torch.cat(distances).reshape(n, k, checks).mean(dim=2)
