"""Rows of a fine-tuning update: which pictures, timesteps and noise, and the denoising loss on them.

Every row has a random stream of its own, named by what it is for: neither the number of processes nor a restart changes
what is drawn.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unmemorize.core.model import Condition, DiffusionModel, drawn_levels


@dataclass(frozen=True)
class Noise:
    """What rows are noised with: noise levels u in (0, 1), (n,), and Gaussian noise (n, c, h, w)."""

    u: Tensor
    eps: Tensor


@dataclass(frozen=True)
class Rows:
    """Which item each row shows, (n,), and the row's random stream."""

    items: Tensor
    streams: list[torch.Generator]

    def coins(self) -> Tensor:
        """A uniform number in [0, 1) from each stream, (n,)."""
        return torch.cat([torch.rand(1, generator=g) for g in self.streams])


def stream(*name: int) -> torch.Generator:
    """A random stream of its own for every sequence of non-negative numbers."""
    seed = np.random.SeedSequence(name).generate_state(1, np.uint64)[0]
    return torch.Generator("cpu").manual_seed(int(seed))


def in_turn(count: int, places: Iterable[int], *name: int) -> Tensor:
    """The items, of `count`, at these places in a sequence of epochs, each a shuffle of all items: (places,)."""
    places = list(places)
    shuffles = {}
    for epoch in {place // count for place in places}:
        shuffles[epoch] = torch.randperm(count, generator=stream(*name, epoch))
    return torch.stack([shuffles[place // count][place % count] for place in places])


def draw_rows(count: int, batch: int, share: slice, *, update: int, name: tuple[int, ...]) -> Rows:
    """The rows of a process's share of an update, which shows `count` items in turn."""
    places = range(update * batch, (update + 1) * batch)[share]
    return Rows(in_turn(count, places, *name, 0), [stream(*name, 1, place) for place in places])


def draw_noise(like: Tensor, rows: Rows) -> Noise:
    """A uniform noise level and noise from each row's stream, for latents such as `like` (n, c, h, w)."""
    u = torch.cat([drawn_levels(1, g) for g in rows.streams])
    eps = torch.stack([torch.randn(like.shape[1:], generator=g) for g in rows.streams])
    return Noise(u.to(like.device), eps.to(like))


def with_dropped(captions: Condition, empty: Condition, dropped: Tensor) -> Condition:
    """The captions, with the empty prompt (one row) in the place of those that are dropped, (n,) bool."""
    rows = torch.where(dropped.cpu(), len(captions), torch.arange(len(captions)))
    return captions.followed_by(empty)[rows]


def denoising_errors(model: DiffusionModel, latents: Tensor, cond: Condition, noise: Noise) -> Tensor:
    """Every row's mean squared error in the trained output, (n,): the ordinary training loss."""
    t = model.timestep(noise.u)
    x = model.add_noise(latents, noise.eps, t)
    return model.predict(x, t, cond).error(latents, noise.eps)
