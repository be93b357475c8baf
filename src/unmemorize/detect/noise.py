"""The magnitude of the text-conditional prediction, in the trained output (the noise, in Stable Diffusion)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from unmemorize.core.bounds import SamplingSteps
from unmemorize.core.methods import Detector, method
from unmemorize.core.recording import Recording, contrast_of
from unmemorize.core.results import Scores


@method(
    "noise-gap",
    paper="Wen et al. 2024, section 3.2",
    cost="1 evaluation a prompt and seed at the first step; 2 for every step up to the last that is read",
    needs=("unconditional",),
)
@dataclass(frozen=True)
class NoiseGap(Detector):
    """How far the prediction for a prompt is from the unconditional one, averaged over sampling steps.

    Paper: Wen et al. 2024 average over all 50 steps.
    Differs: every prompt sees the same seeds, so that scores of two prompts differ by the prompts alone; one norm a
    picture, not one over the batch.

    Attributes:
        first: The first sampling step that is read, from 0.
        last: The step before which reading ends.
    """

    first: SamplingSteps = 0
    last: SamplingSteps = 1

    def __post_init__(self) -> None:
        if not 0 <= self.first < self.last:
            raise ValueError(f"steps {self.first} to {self.last}: name a first step and a later last one")

    def score_recording(self, recording: Recording) -> Scores:
        """Score every prompt at every seed; `columns` holds both norms by step, (n, seeds, steps).

        Raises:
            NotApplicable: Guidance is off, so there is no unconditional prediction along the way.
            UserError: The steps to read lie beyond the sampling steps.
        """
        if (self.first, self.last) == (0, 1):
            contrasts = [recording.start]
        else:
            contrasts = [contrast_of(step, self.name) for step in recording.steps(self.last)[self.first :]]
        gaps = recording.table(torch.stack([contrast.gap for contrast in contrasts], dim=1))
        norms = [contrast.uncond.output.float().flatten(1).norm(dim=1) for contrast in contrasts]
        columns = {"text_norm": gaps, "uncond_norm": recording.table(torch.stack(norms, dim=1))}
        return Scores(gaps.mean(dim=2), columns=columns)
