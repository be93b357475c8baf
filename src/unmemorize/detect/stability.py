"""Whether a path of sampling stays within what ordinary paths do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unmemorize.core.methods import method
from unmemorize.core.recording import Recording
from unmemorize.detect.standardized import Standardized


@method(
    "stability",
    paper="Broken Memories 2026",
    cost="2 evaluations a step, prompt and seed, as sampling takes, and as many for ordinary prompts",
    needs=("ordinary",),
)
@dataclass(frozen=True)
class Stability(Standardized):
    """The sampling step whose length is most unusual, long or short, in standard deviations.

    max_t | ‖x_t − x_{t+1}‖ − mean_t | / sd_t, with mean and standard deviation of ordinary prompts at that step.

    Paper: known from summaries; no public code was obtained.
    Differs: the step's length alone, not that of the predicted clean latent beside it. What is unusual need not be
    memorized: the score is two-sided, as published.
    """

    column: ClassVar[str] = "step_length"

    def values(self, recording: Recording) -> Tensor:
        """The length of every sampling step, (rows, steps)."""
        return torch.stack([(s.x_next.float() - s.x.float()).flatten(1).norm(dim=1) for s in recording.steps()], dim=1)

    def middle(self, values: Tensor) -> Tensor:
        """The mean of ordinary lengths, (steps,)."""
        return values.mean(dim=0)

    def deviation(self, standardized: Tensor) -> Tensor:
        """How far from usual, above or below."""
        return standardized.abs()
