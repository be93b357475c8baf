"""Surrogates: what a memorized prompt should give instead, made by a model that is mitigated already."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from unmemorize.core.batches import decoded
from unmemorize.core.errors import UserError
from unmemorize.core.methods import Subject
from unmemorize.core.results import Surrogates
from unmemorize.core.run import Progress, quiet
from unmemorize.core.sample import ROWS, sample
from unmemorize.unlearn.denoising import Rows

TRIES = 4  # pictures made at most for one that is wanted


def draw_surrogates(surrogates: Surrogates, rows: Rows) -> Tensor:
    """A surrogate of each row's memorized picture, chosen by its stream: (n, c, h, w)."""
    chosen = []
    for picture, generator in zip(rows.items.tolist(), rows.streams, strict=True):
        own = (surrogates.stands_for == picture).nonzero()[:, 0]
        chosen.append(own[torch.randint(len(own), (1,), generator=generator)])
    return surrogates.latents[torch.cat(chosen)]


def make_surrogates(
    prompts: Sequence[str],
    is_copy: Callable[[Tensor, int], Sequence[bool]],
    *,
    mitigated: Iterable[AbstractContextManager[Subject]],
    count: int = 10,
    progress: Progress = quiet,
) -> Surrogates:
    """The first `count` pictures of every prompt, over seeds 0, 1, …, that are no copies.

    Paper: Kowalczuk et al. 2026: pictures of the original prompt by a pruned model, made once before training.
    Differs: none may be a copy, and a prompt whose pictures are gets a model that is pruned further; how many the paper
    makes and whether it looks is not known.

    Args:
        prompts: One a memorized picture.
        is_copy: Which of some pictures (n, 3, h, w) in [0, 1] are copies of the memorized one of that number.
        mitigated: Blocks in which the model is mitigated, weakest first; a prompt takes the first that serves.
        count: Surrogates of each prompt; at most four times as many pictures are made for it in a block.
        progress: Shows prompts done.

    Raises:
        UserError: A prompt gives too few pictures that are no copies.
    """
    latents: dict[int, Tensor] = {}  # by prompt
    for block in mitigated:
        with block as changed:
            for number, prompt in enumerate(prompts):
                if number in latents:
                    continue
                of_prompt = _of_prompt(changed, prompt, number, is_copy, count)
                if len(of_prompt) == count:
                    latents[number] = of_prompt
                    progress("surrogates", len(latents), len(prompts))
        if len(latents) == len(prompts):
            in_order = torch.cat([latents[number] for number in range(len(prompts))])
            return Surrogates(in_order, torch.arange(len(prompts)).repeat_interleave(count))
    missing = next(number for number in range(len(prompts)) if number not in latents)
    raise UserError(
        f"the memorized picture of {prompts[missing]!r}: fewer than {count} of {TRIES * count} pictures are no copies, "
        "too few for surrogates: make them under a stronger --mitigation"
    )


def _of_prompt(
    subject: Subject, prompt: str, number: int, is_copy: Callable[[Tensor, int], Sequence[bool]], count: int
) -> Tensor:
    """Latents of the first pictures that are no copies, at most `count`."""
    model = subject.model
    no_copies: list[Tensor] = []
    for first in range(0, TRIES * count, ROWS):
        seeds = range(first, min(first + ROWS, TRIES * count))
        cond = model.encode([prompt] * len(seeds))
        latents = sample(model, cond, seeds=seeds, sampler=subject.sampler)
        copies = is_copy(decoded(model, latents), number)
        no_copies += [row for row, copy in zip(latents, copies, strict=True) if not copy]
        if len(no_copies) >= count:
            break
    return torch.stack(no_copies[:count]) if no_copies else torch.empty(0)
