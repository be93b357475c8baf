"""Whether a prompt pulls every seed in the same direction."""

from __future__ import annotations

from dataclasses import dataclass

from torch.nn.functional import normalize

from unmemorize.core.methods import Detector, method
from unmemorize.core.recording import Recording
from unmemorize.core.results import Scores


@method(
    "seed-agreement",
    paper="ours, after the memorization strength of NeMo (2024)",
    cost="1 evaluation a prompt and seed, which noise-gap reads too",
    needs=("unconditional",),
)
@dataclass(frozen=True)
class SeedAgreement(Detector):
    """How alike the pictures are that a prompt adds to the first step at different seeds: the mean cosine of all pairs.

    a_i = mean over j ≠ i of cos(g_i, g_j), g_i the difference of x̂0 with and without the prompt at seed i. It is a
    multiple of that in the trained output, the same at every seed, so that the parameterisation does not matter.

    Paper: NeMo (2024), section 3.2, compares seeds by SSIM.
    Differs: a cosine, which needs no pictures of a size; of the unconditional prediction's difference, which the
    noise alone does not decide. At α = 0 the prediction of a perfect flow model is the same for every seed, memorized
    or not.
    """

    def score_recording(self, recording: Recording) -> Scores:
        """Score every prompt at every seed.

        Raises:
            UserError: There is only one seed.
        """
        recording.require_seeds_to_compare(self.name)
        directions = recording.table(normalize(recording.start.difference, dim=1))
        cosines = directions @ directions.mT
        others = cosines.sum(dim=2) - cosines.diagonal(dim1=1, dim2=2)
        return Scores(others / (len(recording.seeds) - 1))
