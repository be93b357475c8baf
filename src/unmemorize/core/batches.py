"""How many rows are computed at once: as many as were asked for, half as many once they do not fit into memory."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from unmemorize.core.errors import UserError
from unmemorize.core.model import DiffusionModel

T = TypeVar("T")
CODED = 16  # pictures that the VAE codes at once, at most

OUT_OF_MEMORY = (
    "out of memory, however little is computed at once: name a narrower --dtype, --offload model, or --device cpu; a "
    "method that has a batch takes less with a smaller one"
)
# How torch says so without an exception of its own: the CPU's allocator, and Apple's.
MESSAGES = ("can't allocate memory", "MPS backend out of memory")


def in_batches(
    model: DiffusionModel, count: int, work: Callable[[slice], T], *, size: int, rows: int = 1
) -> Iterator[tuple[slice, T]]:
    """Call `work` on some of `count` items at a time, in order, and yield which they were and what it gave.

    Where memory runs out the same items are tried again, half as many at once: `model.batch` remembers how many rows
    fit. A call that failed leaves no trace, in the costs either, so `work` has to be a function of its items alone.

    Args:
        model: Whose memory it is.
        count: How many items there are.
        work: The work on a slice of them.
        size: Items at once, at most.
        rows: Rows of the denoiser an item takes.

    Raises:
        UserError: One item alone does not fit into memory.
    """
    start = 0
    while start < count:
        part = slice(start, min(start + at_once(model, size, rows), count))
        fitted = _tried(model, work, part)
        if fitted:
            yield part, fitted[0]
            start = part.stop
            continue
        items = part.stop - part.start
        if items == 1:
            raise UserError(OUT_OF_MEMORY)
        model.batch = items // 2 * rows
        gc.collect()
        torch.cuda.empty_cache()


@torch.no_grad()
def decoded(model: DiffusionModel, latents: Tensor, *, size: int = CODED) -> Tensor:
    """The pictures of latents, (n, 3, H, W) in [0, 1], `size` of them at a time and fewer where memory runs out."""
    parts = in_batches(model, len(latents), lambda part: model.decode(latents[part]), size=size)
    return torch.cat([pictures for _, pictures in parts])


@torch.no_grad()
def inverted(model: DiffusionModel, images: Tensor, *, size: int = CODED) -> Tensor:
    """The latents of pictures in [0, 1], (n, c, h, w), `size` of them at a time and fewer where memory runs out."""
    parts = in_batches(model, len(images), lambda part: model.invert(images[part]), size=size)
    return torch.cat([latents for _, latents in parts])


def at_once(model: DiffusionModel, size: int, rows: int = 1) -> int:
    """How many of at most `size` items, each of so many rows of the denoiser, are computed at once: at least one."""
    return max(size if model.batch is None else min(size, model.batch // rows), 1)


def _tried(model: DiffusionModel, work: Callable[[slice], T], part: slice) -> tuple[T] | None:
    """The result, or None where memory ran out: once this returns, nothing holds on to what had been allocated."""
    try:
        with model.counted():
            return (work(part),)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None


def is_out_of_memory(error: Exception) -> bool:
    """Whether torch found no memory: any other error of the same type is none of our business."""
    return isinstance(error, torch.OutOfMemoryError) or any(message in str(error) for message in MESSAGES)
