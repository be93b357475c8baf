"""What detectors share that compare a quantity with its values on ordinary prompts, step by step."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from unmemorize.core.methods import Detector
from unmemorize.core.recording import Recording
from unmemorize.core.results import Scores

S = TypeVar("S", bound="Standardized")


@dataclass(frozen=True)
class Standardized(Detector):
    """The largest standardized value over steps: max_t (value_t − center_t) / scale_t.

    `center` and `scale` are measured on ordinary prompts by `fitted`. Before that they are 0 and 1: the largest value.
    """

    column: ClassVar[str]  # what the values are called in tables

    center: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()

    @abstractmethod
    def values(self, recording: Recording) -> Tensor:
        """The quantity at every step, (rows, steps)."""

    def middle(self, values: Tensor) -> Tensor:
        """The center of ordinary values (rows, steps), (steps,)."""
        return values.quantile(0.5, dim=0)

    def deviation(self, standardized: Tensor) -> Tensor:
        """How unusual a standardized value is: by default how high."""
        return standardized

    def score_recording(self, recording: Recording) -> Scores:
        """Score every prompt at every seed; `columns` holds the values by step, (n, seeds, steps)."""
        values = recording.table(self.values(recording))
        standardized = values.double()
        if self.center:
            center, scale = torch.tensor([self.center, self.scale], dtype=torch.float64)
            standardized = (standardized - center) / scale
        return Scores(self.deviation(standardized).amax(dim=2).float(), columns={self.column: values})

    def fitted(self: S, ordinary: Scores) -> S:
        """With center and standard deviation of the values of ordinary prompts, over prompts and seeds together."""
        values = ordinary.columns[self.column].flatten(0, 1).double()
        scale = values.std(dim=0).clamp(min=torch.finfo(torch.float32).tiny)  # where they are all the same
        return replace(self, center=tuple(self.middle(values).tolist()), scale=tuple(scale.tolist()))
