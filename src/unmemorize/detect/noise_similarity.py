"""Whether the noise that is predicted for a prompt has the same structure at different seeds."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from unmemorize.core.methods import Detector, method
from unmemorize.core.recording import Recording, wide
from unmemorize.core.results import Scores
from unmemorize.core.sample import generators
from unmemorize.metrics.ssim import pairwise_ssim, scaled, scales_for


@method(
    "noise-similarity",
    paper="Hintersdorf et al. 2024 (NeMo), section 3.2, the memorization strength",
    cost="1 evaluation a prompt and seed, which noise-gap reads too",
)
@dataclass(frozen=True)
class NoiseSimilarity(Detector):
    """The structural similarity of the noise differences of two seeds, each seed's with the most similar other one.

    s_i = max over j ≠ i of SSIM(D_i, D_j), D_i = ε(x_i, e_p) − x_i at the first step, each channel scaled to [0, 1].
    The prompt alone is evaluated, without guidance.

    Paper: Hintersdorf et al. 2024, whose localizer calls a prompt memorized where it exceeds 0.428 at one of ten seeds.
    Differs: at the first sampling step, as in `nemo`; a model that predicts something else than ε gives −x̂0, which is
    nearly the same up to scale there.
    """

    def score_recording(self, recording: Recording) -> Scores:
        """Score every prompt at every seed.

        Raises:
            UserError: There is only one seed.
        """
        recording.require_seeds_to_compare(self.name)
        prediction = recording.start.cond
        if prediction.kind == "epsilon":
            noise = recording.model.noise(generators(recording.seeds)).repeat(len(recording.cond), 1, 1, 1)
            difference = wide(prediction.eps) - wide(noise)
        else:
            difference = -wide(prediction.x0)
        differences = scaled(difference.float()).split(len(recording.seeds))
        scales = scales_for(*difference.shape[-2:])
        return Scores(torch.stack([pairwise_ssim(of_prompt, scales).amax(dim=1).cpu() for of_prompt in differences]))
