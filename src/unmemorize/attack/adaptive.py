"""The adaptive attack: many starts and both losses, ten times DoRI's cost, spent on what comes closest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unmemorize.attack.dori import Dori, dori
from unmemorize.attack.high_noise import HighNoise
from unmemorize.core.model import Condition, DiffusionModel
from unmemorize.core.results import Attack
from unmemorize.core.sample import generators, trajectory


@dataclass(frozen=True)
class Adaptive:
    """Settings: evaluations a picture, ways to search, and seeds, sampling steps and guidance of a check.

    The check's seeds have to differ from those that copies are judged on: the best of many tries looks like success.
    """

    budget: int = 4000
    ways: tuple[Dori, ...] = (Dori(), HighNoise())
    seeds: tuple[int, ...] = (7001, 7002)
    steps: int = 4
    guidance: float = 7.5

    @property
    def check(self) -> int:
        """Evaluations of one check."""
        return len(self.seeds) * self.steps * (2 if self.guidance > 1 else 1)


def adaptive(
    model: DiffusionModel,
    latents: Tensor,
    inits: Tensor,
    *,
    seeds: Sequence[int],
    how: Adaptive = Adaptive(),
    rows: int = 64,
) -> Attack:
    """Search from every start in every way, and halve the candidates again and again, by how near their samples come.

    All candidates of a picture share a round's evaluations; the better half goes on from where it is, with as many
    evaluations together as all had before. Near is the mean distance between the picture's latent and samples of a few
    steps, from seeds of their own. A search that ends farther away than it began is undone.

    Paper: Jamieson and Talwalkar 2016, successive halving; the searches are DoRI's (Kowalczuk et al. 2026).

    Args:
        model: The model to attack, with its edits applied.
        latents: The pictures' latents, (n, c, h, w).
        inits: The embeddings to start from, (n, starts, tokens, width).
        seeds: One a picture, for noise and timesteps.
        how: Settings.
        rows: The largest number of rows in one evaluation of the denoiser.

    Returns:
        The nearest embedding of each picture, by the updates on its way; in place of losses the distance after each
        round, (rounds, n); and the denoiser evaluations.
    """
    before, (n, starts), ways = model.evaluations, inits.shape[:2], len(how.ways)
    y = inits.repeat_interleave(ways, dim=1)
    origin = torch.arange(starts * ways).repeat(n, 1)  # which start and way a candidate came from
    near = _distances(model, latents, y, how, rows)
    sizes = _halvings(starts * ways)
    share = (how.budget - how.check * (sizes[0] + sum(sizes))) // len(sizes)
    trace, updates = [], 0
    for turn, size in enumerate(sizes):
        best = near.argsort(dim=1, stable=True)[:, :size]
        y, near, origin = (_pick(v, best) for v in (y, near, origin))
        streams = torch.tensor(seeds)[:, None] * 10_000 + turn * 1000 + origin
        searches = [replace(way, steps=share // size // way.batch) for way in how.ways]
        found = _searched(model, latents, y, origin % ways, streams, searches, rows)
        now = _distances(model, latents, found, how, rows)
        y = torch.where((now < near)[..., None, None], found, y)
        near = torch.minimum(now, near)
        updates += max(search.steps for search in searches)
        trace.append(near.min(dim=1).values)
    last = near.argmin(dim=1, keepdim=True)
    return Attack({updates: _pick(y, last)[:, 0]}, torch.stack(trace), model.evaluations - before)


def mixed(own: Tensor, pools: Sequence[Tensor], *, seeds: Sequence[int], random: int = 2) -> Tensor:
    """Starts for each picture: its own prompt, draws from N(0, I), and one prompt of every pool.

    Args:
        own: The pictures' own prompts, (n, tokens, width).
        pools: Encoded prompts to draw from, (any, tokens, width) each; a pool may come twice.
        seeds: One a picture.
        random: How many draws from N(0, I).

    Returns:
        (n, 1 + random + pools, tokens, width).
    """
    starts = []
    for prompt, stream in zip(own, generators(seeds), strict=True):
        normal = torch.randn(random, *prompt.shape, generator=stream).to(prompt)
        drawn = [pool[int(torch.randint(len(pool), (1,), generator=stream))].to(prompt) for pool in pools]
        starts.append(torch.stack([prompt, *normal, *drawn]))
    return torch.stack(starts)


def _halvings(count: int) -> list[int]:
    """How many candidates are searched from in each round: all, half of them, and so on down to one."""
    return [count, *_halvings(count // 2)] if count > 1 else [1]


def _pick(values: Tensor, columns: Tensor) -> Tensor:
    """Some columns of each row."""
    return values[torch.arange(len(values))[:, None], columns]


def _searched(
    model: DiffusionModel, latents: Tensor, y: Tensor, way: Tensor, streams: Tensor, ways: Sequence[Dori], rows: int
) -> Tensor:
    """Every candidate after its own `way` of searching, an index of `ways`, with the noise of its own seed."""
    found = y.clone()
    for index, settings in enumerate(ways):
        chosen = way == index
        picture = chosen.nonzero()[:, 0]
        if len(picture):
            attack = dori(model, latents[picture], y[chosen], seeds=streams[chosen].tolist(), how=settings, rows=rows)
            found[chosen] = attack.found
    return found


def _distances(model: DiffusionModel, latents: Tensor, y: Tensor, how: Adaptive, rows: int) -> Tensor:
    """Root mean square distance between each candidate's samples and the picture, over the check's seeds: (n, k)."""
    n, k, checks = *y.shape[:2], len(how.seeds)
    embeds, seeds = y.flatten(0, 1).repeat_interleave(checks, dim=0), how.seeds * (n * k)
    targets = latents.repeat_interleave(k * checks, dim=0)
    found, size = [], max(rows // 2, 1)
    for i in range(0, len(embeds), size):
        part = slice(i, i + size)
        path = trajectory(model, Condition(embeds[part]), seeds=seeds[part], steps=how.steps, guidance=how.guidance)
        for step in path:
            last = step.x_next
        found.append((last - targets[part]).square().mean(dim=(1, 2, 3)).sqrt())
    return torch.cat(found).reshape(n, k, checks).mean(dim=2)
