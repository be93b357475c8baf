"""The adaptive attack: many starts, searched long in two ways, ten times DoRI's cost, and of all what comes closest."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unmemorize.attack.dori import Dori, dori
from unmemorize.attack.high_noise import FromNoise, HighNoise
from unmemorize.core.model import Condition, DiffusionModel
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
    inits: Tensor,
    *,
    seeds: Sequence[int],
    how: Adaptive = Adaptive(),
    rows: int = 64,
) -> Attack:
    """Search long from every start, and keep what brings samples nearest to the picture, be it a start itself.

    Near is the mean distance between the picture's latent and samples of a few steps, from seeds of their own. Starts
    take turns in how they are searched from: what a defence hides from one loss may show in another.

    Paper: the search is DoRI's (Kowalczuk et al. 2026).

    Args:
        model: The model to attack, with its edits applied.
        latents: The pictures' latents, (n, c, h, w).
        inits: The embeddings to start from, (n, starts, tokens, width).
        seeds: One a picture, for noise and timesteps.
        how: Settings.
        rows: The largest number of rows in one evaluation of the denoiser.

    Returns:
        The nearest embedding of each picture; in place of losses its distance, (1, n); and the denoiser evaluations.
    """
    before, (n, starts) = model.evaluations, inits.shape[:2]
    found = inits.clone()
    for turn, way in enumerate(how.ways[:starts]):
        some = list(range(starts))[turn :: len(how.ways)]
        streams = [seed * 1000 + k for seed in seeds for k in some]
        each, start = latents.repeat_interleave(len(some), dim=0), inits[:, some].flatten(0, 1)
        ends = dori(model, each, start, seeds=streams, how=replace(way, steps=how.steps), rows=rows).found
        found[:, some] = ends.unflatten(0, (n, len(some)))
    candidates = torch.cat([inits, found], dim=1)
    near, best = _distances(model, latents, candidates, how, rows).min(dim=1)
    return Attack({how.steps: candidates[torch.arange(n), best]}, near[None], model.evaluations - before)


def from_prompts(
    model: DiffusionModel,
    latents: Tensor,
    init: Tensor,
    *,
    seeds: Sequence[int],
    keep: Collection[int] = (),
    pools: Sequence[Tensor],
    how: Adaptive = Adaptive(),
) -> Attack:
    """`adaptive` from the pictures' own prompts (n, tokens, width), draws from N(0, I), and prompts of pools.

    As a method that `extraction` takes: on the way there is nothing to keep but the prompts, as after 0 updates.
    """
    attack = adaptive(model, latents, mixed(init, pools, seeds=seeds), seeds=seeds, how=how)
    return replace(attack, embeds={0: init} | attack.embeds)


def mixed(own: Tensor, pools: Sequence[Tensor], *, seeds: Sequence[int]) -> Tensor:
    """Starts for each picture: its own prompt twice, two draws from N(0, I), and one prompt of every pool.

    Each kind of start comes twice in a row, because `adaptive` searches every second start at high noise and the others
    from noise: the own prompt has to be searched in both ways. Name a pool twice for the same reason.

    Args:
        own: The pictures' own prompts, (n, tokens, width).
        pools: Encoded prompts to draw from, (any, tokens, width) each.
        seeds: One a picture.

    Returns:
        (n, 4 + pools, tokens, width).
    """
    starts = []
    for prompt, stream in zip(own, generators(seeds), strict=True):
        normal = torch.randn(2, *prompt.shape, generator=stream).to(prompt)
        drawn = [pool[int(torch.randint(len(pool), (1,), generator=stream))].to(prompt) for pool in pools]
        starts.append(torch.stack([prompt, prompt, *normal, *drawn]))
    return torch.stack(starts)


def _distances(model: DiffusionModel, latents: Tensor, y: Tensor, how: Adaptive, rows: int) -> Tensor:
    """Root mean square distance between each candidate's samples and the picture, over the check's seeds: (n, k)."""
    n, k, checks = *y.shape[:2], len(how.seeds)
    embeds, seeds = y.flatten(0, 1).repeat_interleave(checks, dim=0), how.seeds * (n * k)
    targets = latents.repeat_interleave(k * checks, dim=0)
    found, size = [], max(rows // 2, 1)
    for i in range(0, len(embeds), size):
        part = slice(i, i + size)
        path = trajectory(model, Condition(embeds[part]), seeds=seeds[part], steps=how.sampling, guidance=how.guidance)
        for step in path:
            last = step.x_next
        found.append((last - targets[part]).square().mean(dim=(1, 2, 3)).sqrt())
    return torch.cat(found).reshape(n, k, checks).mean(dim=2)
