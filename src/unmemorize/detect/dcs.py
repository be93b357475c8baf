"""How far one guided step leads from the noise."""

from __future__ import annotations

from dataclasses import dataclass

from unmemorize.core.methods import Detector, method
from unmemorize.core.recording import Recording
from unmemorize.core.results import Scores


@method(
    "dcs",
    paper="Webster 2023, the denoising confidence score",
    cost="1 evaluation a prompt and seed, which noise-gap reads too",
    needs=("unconditional",),
)
@dataclass(frozen=True)
class Dcs(Detector):
    """The mean squared distance between the first noisy latent and the one that a single guided step gives.

    mean((x/α − x̂0)²) = (σ/α)² mean(ε̂²), ε̂ = ε_∅ + w (ε_p − ε_∅), in the scale in which noise is added to the picture.

    Paper: Webster 2023, the white-box score, with one step of the sampler.
    Reference implementation: keeps the score of the last seed alone; here every seed has its own.

    Attributes:
        guidance: w, as published.
    """

    guidance: float = 7.5

    def score_recording(self, recording: Recording) -> Scores:
        """Score every prompt at every seed.

        Raises:
            NotApplicable: The first step is noise alone, from which no step leads by a finite distance.
        """
        recording.start.require_signal(self.name)
        guided = recording.start.guided(self.guidance)
        distance = guided.x / guided.alpha.to(guided.x) - guided.x0
        return Scores(recording.table(distance.square().flatten(1).mean(dim=1)))
