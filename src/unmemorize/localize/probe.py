"""Block sets of value channels and see how alike the noise predictions stay: many sets in one call of the denoiser."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from unmemorize.core.batches import in_batches
from unmemorize.core.hooks import outputs_before, patched, replayed
from unmemorize.core.model import Condition, DiffusionModel
from unmemorize.localize.reference import Start
from unmemorize.metrics.ssim import scales_for, ssim

WIDEST = 32  # sets tested ahead of need
CLOSE = 0.01  # a seed further below the limit, before and after a layer's channels, is not looked at in between


class Probe:
    """One prompt's noise differences with value channels blocked.

    A set of channels is a boolean vector over all layers of `widths` in their order, (channels,); several are rows. All
    are on the CPU.

    Args:
        model: The model.
        cond: The prompt, one row.
        start: The first sampling step.
        free: Differences with nothing blocked, (seeds, c, h, w).
        seeds: Which of the seeds to look at, the hardest to change first.
        widths: Channels by module name.
        batch: Rows per call.
    """

    def __init__(
        self,
        model: DiffusionModel,
        cond: Condition,
        start: Start,
        free: Tensor,
        seeds: Tensor,
        widths: Mapping[str, int],
        batch: int = 64,
    ) -> None:
        self._model, self._cond, self._start, self._free, self._batch = model, cond, start, free, batch
        self._seeds, self._order, self._before = seeds, seeds, dict[str, Any]()
        self._scales = scales_for(*free.shape[-2:])
        self.widths = dict(widths)

    def by_name(self, blocked: Tensor) -> dict[str, Tensor]:
        """The parts of a set, or of rows of sets, by layer."""
        parts = blocked.split(list(self.widths.values()), dim=-1)
        return dict(zip(self.widths, parts, strict=True))

    def similarity(self, blocked: Tensor, seeds: Tensor) -> Tensor:
        """SSIM of the differences with and without each set blocked at all tokens: (sets, seeds)."""
        rows = torch.arange(len(blocked) * len(seeds))

        def compared(part: slice) -> Tensor:
            sets, seed = blocked[rows[part] // len(seeds)], seeds[rows[part] % len(seeds)]
            with replayed(self._model.denoiser, self._before, seed.to(self._free.device)):
                differences = self._differences(sets, seed)
            return ssim(self._free[seed], differences, self._scales).cpu()

        values = [torch.empty(0)]
        for _, value in in_batches(self._model, len(rows), compared, size=self._batch):
            values.append(value)
        return torch.cat(values).reshape(len(blocked), len(seeds))

    @contextmanager
    def changing(self, layer: str, blocked: Tensor) -> Iterator[None]:
        """Sets tested in this block differ from `blocked` in this layer alone: what precedes it is computed once."""
        seeds = torch.arange(len(self._free))
        sets = blocked.expand(len(seeds), -1)
        self._before = outputs_before(self._model.denoiser, layer, lambda: self._differences(sets, seeds))
        try:
            yield
        finally:
            self._before = {}

    def _differences(self, blocked: Tensor, seeds: Tensor) -> Tensor:
        device = self._free.device
        changes = {}
        for name, part in self.by_name(blocked).items():
            if part.any():
                changes[name] = _zeroed(part[:, None].to(device))
        with patched(self._model.denoiser, changes):
            return self._start.differences(self._model, self._cond[torch.zeros_like(seeds)], seeds)

    def look_at(self, seeds: Tensor) -> None:
        """Set the seeds that `strength` and `strengths` are computed at, the hardest first."""
        self._order = seeds

    def close(self, blocked: Tensor, limit: float) -> tuple[Tensor, float]:
        """Seeds where a set is less than `CLOSE` below the limit, or the highest alone, highest first; its SSIM."""
        values = self.similarity(blocked[None], self._seeds)[0]
        order = values.argsort(descending=True, stable=True)
        return self._seeds[order[: max(int((values > limit - CLOSE).sum()), 1)]], float(values.max())

    def strength(self, blocked: Tensor) -> float:
        """The highest SSIM of the seeds with one set blocked."""
        return float(self.similarity(blocked[None], self._order).max())

    def strengths(self, blocked: Tensor, limit: float, *, expected: bool) -> list[float]:
        """`strength` of each set in order, up to the first that is not as expected: at most `limit` or above it.

        One seed above the limit settles a set, so all are tested at the seed that was hardest last, and only those that
        pass there at the others: the value of a set that fails is a lower bound.
        """
        order = self._order
        hardest = self.similarity(blocked, order[:1])
        values: list[float] = []
        while len(values) < len(blocked) and all((value <= limit) == expected for value in values):
            remaining = hardest[len(values) :, 0]
            failing = (remaining > limit).nonzero()
            ahead = int(failing[0]) if len(failing) else len(remaining)  # so many pass at the hardest seed
            if not ahead:
                values.append(float(remaining[0]))
                continue
            ahead = ahead if expected else 1
            at = slice(len(values), len(values) + ahead)
            table = torch.cat([hardest[at], self.similarity(blocked[at], order[1:])], dim=1)
            self._order = order[table[-1].argsort(descending=True, stable=True)]
            values += table.amax(1).tolist()
        return _up_to_surprise(values, limit, expected)


class MeanProbe(Probe):
    """A probe whose strength is the mean SSIM of its seeds: every set is tested at all of them."""

    def strength(self, blocked: Tensor) -> float:
        """The mean SSIM of the seeds with one set blocked."""
        return float(self.similarity(blocked[None], self._seeds).mean())

    def strengths(self, blocked: Tensor, limit: float, *, expected: bool) -> list[float]:
        """`strength` of each set in order, up to the first that is not as expected: at most `limit` or above it."""
        means = self.similarity(blocked, self._seeds).mean(1).tolist()
        return _up_to_surprise(means, limit, expected)

    def close(self, blocked: Tensor, limit: float) -> tuple[Tensor, float]:
        """All seeds, as each counts in the mean; its SSIM."""
        return self._seeds, self.strength(blocked)


def _up_to_surprise(values: list[float], limit: float, expected: bool) -> list[float]:
    surprises = [i for i, value in enumerate(values) if (value <= limit) != expected]
    return values[: surprises[0] + 1] if surprises else values


def refine(probe: Probe, blocked: Tensor, items: Tensor, limit: float, reached: float) -> tuple[Tensor, float]:
    """Free item after item (rows of channels) of a blocked set wherever the strength stays at most `limit`.

    Returns what stays blocked and its strength, `reached` if that is all. The sets tested in one call are those that
    one-at-a-time search would test if each item turned out like the last; what a surprise makes void is tested again.
    """
    expected, ahead = True, 2
    while len(items):
        tested = items[:ahead]
        # Sets that build on each other where every item is expected to be freed, and else sets of one item each.
        freed = tested.cumsum(0).bool() if expected else tested
        values = probe.strengths(blocked & ~freed, limit, expected=expected)
        for item, value in zip(tested, values, strict=False):
            if value <= limit:
                blocked, reached = blocked & ~item, value
        surprised = (values[-1] <= limit) != expected
        expected, ahead = expected != surprised, 2 if surprised else min(2 * ahead, WIDEST)
        items = items[len(values) :]
    return blocked, reached


def refine_closely(probe: Probe, blocked: Tensor, items: Tensor, limit: float, reached: float) -> tuple[Tensor, float]:
    """`refine` at the seeds that are close to the limit before it, and again with those that are close after it."""
    seeds, _ = probe.close(blocked, limit)
    while True:
        probe.look_at(seeds)
        freed, _ = refine(probe, blocked, items, limit, reached)
        after, strength = probe.close(freed, limit)
        more = after[~torch.isin(after, seeds)]
        if not len(more):
            return freed, strength
        seeds = torch.cat([seeds, more])


def _zeroed(mask: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda values: values.masked_fill(mask, 0)
