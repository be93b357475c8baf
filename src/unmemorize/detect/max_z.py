"""The step at which a prompt stands out most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unmemorize.core.methods import method
from unmemorize.core.recording import Recording, contrast_of
from unmemorize.detect.standardized import Standardized


@method(
    "max-z",
    paper="ours, of the magnitude of Wen et al. 2024",
    cost="2 evaluations a step, prompt and seed, as sampling takes, and as many for ordinary prompts",
    needs=("unconditional", "ordinary"),
)
@dataclass(frozen=True)
class MaxZ(Standardized):
    """The text-conditional magnitude at the sampling step where it is most unusual, in standard deviations.

    max_t (m_t − median_t) / sd_t, m_t the magnitude at step t; median and standard deviation are those of ordinary
    prompts at that step. A mean over steps hides a memory that shows at some of them.
    """

    column: ClassVar[str] = "text_norm"

    def values(self, recording: Recording) -> Tensor:
        """The magnitude at every sampling step, (rows, steps).

        Raises:
            NotApplicable: Guidance is off, so there is no unconditional prediction along the way.
        """
        return torch.stack([contrast_of(step, self.name).gap for step in recording.steps()], dim=1)
