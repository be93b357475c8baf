"""Whether the text pulls noise where the model would take it anyway."""

from __future__ import annotations

from dataclasses import dataclass

from torch.nn.functional import cosine_similarity

from unmemorize.core.bounds import SamplingSteps
from unmemorize.core.methods import Detector, method
from unmemorize.core.recording import Recording, wide
from unmemorize.core.results import Scores


@method(
    "anisotropy",
    paper="Asthana & Belagiannis 2026",
    cost="1 evaluation a prompt and seed at low noise, and 1 at the first step",
    needs=("unconditional",),
)
@dataclass(frozen=True)
class Anisotropy(Detector):
    """The cosine of the text-conditional score difference and the unconditional score at low noise, on pure noise.

    cos(s(x, e_p) − s(x, e_∅), s(x, e_∅)), x the input of the first step, given to the model at a timestep near the end;
    `columns` holds the magnitude at the first step, (n, seeds, 1), which the paper adds with weights.

    Paper: Asthana and Belagiannis 2026.
    Differs: one cosine over all values of a picture (the public code averages cosines of channels, pixel by pixel), of
    scores in every parameterisation; no weights, which would have to be fitted to known memories.

    Attributes:
        before: How many sampling steps before the end the noise level lies; 3 is the third last step.
    """

    before: SamplingSteps = 3

    def __post_init__(self) -> None:
        if self.before < 1:
            raise ValueError(f"before={self.before}: name a step from the end, 1 for the last")

    def score_recording(self, recording: Recording) -> Scores:
        """Score every prompt at every seed."""
        model = recording.model
        timesteps = model.schedule(recording.recorder.sampler.steps_of(model)).timesteps
        contrast = recording.on_noise(timesteps[-min(self.before, len(timesteps))])
        alone = wide(contrast.uncond.score)
        text = (wide(contrast.cond.score) - alone).flatten(1)
        cosine = recording.table(cosine_similarity(text, alone.flatten(1), dim=1))
        return Scores(cosine, columns={"text_norm": recording.table(recording.start.gap[:, None])})
