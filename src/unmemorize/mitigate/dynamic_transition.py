"""The dynamic transition point: no guidance until the text-conditional magnitude has passed its first minimum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from unmemorize.core.methods import Acts, method
from unmemorize.core.sample import Sampler, StepState
from unmemorize.mitigate.sampling import BySampler


def past_minimum(magnitudes: Sequence[Tensor]) -> Tensor:
    """Whether each picture's magnitudes (n,), step by step, have a local minimum before the last: (n,) bool."""
    d = torch.stack(list(magnitudes))
    minimum = (d[:-2] > d[1:-1]) & (d[1:-1] < d[2:])
    return minimum.any(dim=0)


@dataclass(frozen=True)
class DynamicSampler(Sampler):
    """A sampler that guides by another scale, `before`, until each picture's own transition point."""

    before: float = 0.0
    _magnitudes: list[Tensor] = field(default_factory=list, init=False, repr=False, compare=False)

    def fresh(self) -> DynamicSampler:
        """One that has seen no step."""
        return replace(self)

    def guide(self, state: StepState) -> Tensor:
        """The family's guidance for pictures past their transition, for others that of the other scale."""
        held_back = state.guided(self.before)
        assert state.uncond is not None  # or there were no guidance
        difference = (state.cond.eps - state.uncond.eps).detach().float()
        self._magnitudes.append(difference.flatten(1).norm(dim=1))
        return torch.where(past_minimum(self._magnitudes)[:, None, None, None], state.output, held_back)


@method("dynamic-transition", paper="Jain et al. 2025 (DTP)", cost="none", needs=("unconditional",))
@dataclass(frozen=True)
class DynamicTransition(BySampler):
    """Guide by the prompt once the magnitude of what it adds has passed its first local minimum.

    With d_k = ‖ε_c − ε_u‖ at step k guidance sets in at the first k with d_{k−2} > d_{k−1} < d_k. A picture whose
    magnitude has no such minimum is never guided.

    Paper: Jain et al. 2025 (DTP).
    Differs: each picture has its own transition; until then the scale is 0, where the public code has 1, which is the
    conditional prediction.
    """

    acts: ClassVar[Acts] = "guidance"
    guided: ClassVar[bool] = True

    def sampler(self, base: Sampler) -> DynamicSampler:
        """Without guidance until then."""
        return DynamicSampler(base.steps, base.guidance)
