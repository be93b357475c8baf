"""The first step, and one step in the middle of the noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unmemorize.core.methods import method
from unmemorize.core.recording import Recording
from unmemorize.detect.mid_noise import Jump
from unmemorize.detect.standardized import Standardized


@method(
    "two-probe",
    paper="ours, of the magnitude of Wen et al. 2024",
    cost="3 evaluations a prompt and seed, and as many for each ordinary prompt",
    needs=("unconditional", "ordinary"),
)
@dataclass(frozen=True)
class TwoProbe(Jump, Standardized):
    """The larger of two standardized magnitudes: at the first step, and after one jump to the middle of the noise.

    Median and standard deviation are those of ordinary prompts at the same two places.
    """

    column: ClassVar[str] = "text_norm"

    def values(self, recording: Recording) -> Tensor:
        """The magnitude at both places, (rows, 2)."""
        return torch.stack([recording.start.gap, recording.probe(self.ratio, self.guidance).gap], dim=1)
