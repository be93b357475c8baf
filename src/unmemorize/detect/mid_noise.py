"""The magnitude in the middle of the noise."""

from __future__ import annotations

from dataclasses import dataclass

from unmemorize.core.methods import Detector, method
from unmemorize.core.recording import Recording
from unmemorize.core.results import Scores


@dataclass(frozen=True)
class Jump:
    """Where one DDIM step from the first sampling step leads.

    Attributes:
        ratio: The signal-to-noise ratio α/σ that is jumped to.
        guidance: The guidance scale of the jump.
    """

    ratio: float = 1.2
    guidance: float = 3.0

    def __post_init__(self) -> None:
        if self.ratio <= 0:
            raise ValueError(f"ratio={self.ratio}: name a signal-to-noise ratio above 0")


@method(
    "mid-noise",
    paper="ours, of the magnitude of Wen et al. 2024",
    cost="3 evaluations a prompt and seed",
    needs=("unconditional",),
)
@dataclass(frozen=True)
class MidNoise(Jump, Detector):
    """The text-conditional magnitude after one jump from the first sampling step to the middle of the noise.

    x = α·x̂0 + σ·ε̂, both as guidance has them at the first step. Weakly memorized pictures may show there first.
    """

    def score_recording(self, recording: Recording) -> Scores:
        """Score every prompt at every seed."""
        return Scores(recording.table(recording.probe(self.ratio, self.guidance).gap))
