"""Surrogates: what a memorized prompt should give instead, made by a model that is mitigated already."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from unmemorize.core.errors import UserError
from unmemorize.core.model import DiffusionModel
from unmemorize.core.run import Progress
from unmemorize.core.sample import trajectory
from unmemorize.mitigate.denoising import Rows

TRIES = 4  # pictures made at most for one that is wanted


@dataclass(frozen=True)
class Surrogates:
    """Latents (n, c, h, w) of other pictures, and the number of the memorized picture each stands for, (n,)."""

    latents: Tensor
    stands_for: Tensor

    @property
    def pictures(self) -> int:
        """How many memorized pictures there are; each has a surrogate."""
        return int(self.stands_for.max()) + 1

    def draw(self, rows: Rows) -> Tensor:
        """A surrogate of each row's memorized picture, chosen by its stream: (n, c, h, w)."""
        chosen = []
        for picture, generator in zip(rows.items.tolist(), rows.streams, strict=True):
            own = (self.stands_for == picture).nonzero()[:, 0]
            chosen.append(own[torch.randint(len(own), (1,), generator=generator)])
        return self.latents[torch.cat(chosen)]


@dataclass(frozen=True)
class Sampling:
    """How pictures are made: sampling steps, guidance, rows at a time."""

    steps: int = 50
    guidance: float | None = 7.5
    batch: int = 16


def make_surrogates(
    model: DiffusionModel,
    prompts: Sequence[str],
    is_copy: Callable[[Tensor, int], Sequence[bool]],
    *,
    mitigated: Iterable[AbstractContextManager[object]],
    count: int = 10,
    how: Sampling = Sampling(),
    progress: Progress = lambda stage, done, total: None,
) -> Surrogates:
    """The first `count` pictures of every prompt, over seeds 0, 1, …, that are no copies.

    Paper: Kowalczuk et al. 2026: pictures of the original prompt by a pruned model, made once before training.
    Differs: none may be a copy, and a prompt whose pictures are gets a model that is pruned further; how many the paper
    makes and whether it looks is not known.

    Args:
        model: The model.
        prompts: One a memorized picture.
        is_copy: Which of some pictures (n, 3, h, w) in [0, 1] are copies of the memorized one of that number.
        mitigated: Blocks in which the model is mitigated, weakest first; a prompt takes the first that serves.
        count: Surrogates of each prompt; at most four times as many pictures are made for it in a block.
        how: Sampling.
        progress: Shows prompts done.

    Raises:
        UserError: A prompt gives too few pictures that are no copies.
    """
    found: dict[int, Tensor] = {}
    for block in mitigated:
        with block:
            for number in (k for k in range(len(prompts)) if k not in found):
                kept = _of_prompt(model, prompts[number], number, is_copy, count, how)
                if len(kept) == count:
                    found[number] = kept
                    progress("surrogates", len(found), len(prompts))
        if len(found) == len(prompts):
            latents = torch.cat([found[k] for k in range(len(prompts))])
            return Surrogates(latents, torch.arange(len(prompts)).repeat_interleave(count))
    missing = next(k for k in range(len(prompts)) if k not in found)
    raise UserError(
        f"the memorized picture of {prompts[missing]!r}: fewer than {count} of {TRIES * count} pictures are no copies, "
        "too few for surrogates: make them with a stronger --edit"
    )


def _of_prompt(
    model: DiffusionModel,
    prompt: str,
    number: int,
    is_copy: Callable[[Tensor, int], Sequence[bool]],
    count: int,
    how: Sampling,
) -> Tensor:
    kept: list[Tensor] = []
    for first in range(0, TRIES * count, how.batch):
        seeds = range(first, min(first + how.batch, TRIES * count))
        cond = model.encode([prompt] * len(seeds))
        for step in trajectory(model, cond, seeds=seeds, steps=how.steps, guidance=how.guidance):
            x = step.x_next
        with torch.no_grad():
            copies = is_copy(model.decode(x), number)
        kept += [row for row, copy in zip(x, copies, strict=True) if not copy]
        if len(kept) >= count:
            break
    return torch.stack(kept[:count]) if kept else torch.empty(0)
