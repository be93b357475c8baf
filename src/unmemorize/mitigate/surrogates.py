"""Surrogates: what a memorized prompt should give instead, made by a model that is mitigated already."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unmemorize.core.errors import UserError
from unmemorize.core.model import DiffusionModel
from unmemorize.core.run import Progress
from unmemorize.core.sample import trajectory
from unmemorize.mitigate.denoising import Rows


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
    guidance: float = 7.5
    batch: int = 16


def make_surrogates(
    model: DiffusionModel,
    prompts: Sequence[str],
    is_copy: Callable[[Tensor], Sequence[bool]],
    *,
    count: int = 10,
    tries: int = 40,
    how: Sampling = Sampling(),
    progress: Progress = lambda stage, done, total: None,
) -> Surrogates:
    """The first `count` pictures of every prompt, over seeds 0, 1, …, that are no copies.

    The model is to be mitigated already, by an edit for example: it should make pictures that fit the prompt.

    Paper: Kowalczuk et al. 2026: pictures of the original prompt by a pruned model, made once before training.
    Differs: none may be a copy; how many the paper makes and whether it looks is not known.

    Args:
        model: The mitigated model.
        prompts: One a memorized picture.
        is_copy: Which of some pictures (n, 3, h, w) in [0, 1] are copies.
        count: Surrogates of each.
        tries: The largest number of pictures made for a prompt.
        how: Sampling.
        progress: Shows prompts done.

    Raises:
        UserError: A prompt gives too few pictures that are no copies.
    """
    parts, owners = [], []
    for number, prompt in enumerate(prompts):
        kept = _of_prompt(model, prompt, is_copy, count, tries, how)
        if len(kept) < count:
            raise UserError(
                f"memorized picture {number + 1}, {prompt!r}: {len(kept)} of {tries} pictures are no copies, {count} "
                "are needed as surrogates: make them with a stronger --edit, or ask for fewer with --surrogates"
            )
        parts.append(kept)
        owners += [number] * count
        progress("surrogates", number + 1, len(prompts))
    return Surrogates(torch.cat(parts), torch.tensor(owners))


def _of_prompt(
    model: DiffusionModel,
    prompt: str,
    is_copy: Callable[[Tensor], Sequence[bool]],
    count: int,
    tries: int,
    how: Sampling,
) -> Tensor:
    kept: list[Tensor] = []
    for first in range(0, tries, how.batch):
        seeds = range(first, min(first + how.batch, tries))
        cond = model.encode([prompt] * len(seeds))
        for step in trajectory(model, cond, seeds=seeds, steps=how.steps, guidance=how.guidance):
            x = step.x_next
        with torch.no_grad():
            copies = is_copy(model.decode(x).float().cpu())
        kept += [row for row, copy in zip(x, copies, strict=True) if not copy]
        if len(kept) >= count:
            break
    return torch.stack(kept[:count]) if kept else torch.empty(0)
