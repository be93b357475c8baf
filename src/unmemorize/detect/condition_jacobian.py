"""How fast the prediction changes when the prompt begins to fade."""

from __future__ import annotations

from dataclasses import dataclass, replace

from unmemorize.core.methods import Detector, method
from unmemorize.core.model import Condition
from unmemorize.core.recording import Recording
from unmemorize.core.results import Scores

SMALLEST = 1e-6  # a smaller step is lost in the rounding of float32


@method(
    "condition-jacobian",
    paper="Condition Jacobian 2026 (OpenReview pY2P28M9Iv)",
    cost="2 evaluations a prompt and seed, one of which noise-gap reads too",
    needs=("unconditional",),
)
@dataclass(frozen=True)
class ConditionJacobian(Detector):
    """The change of the prediction at the first step by the embedding, from the prompt towards no prompt.

    j = ‖f(e_p + h (e_∅ − e_p)) − f(e_p)‖₂ / h, f the trained output. The published claim: on the way from no prompt to
    a memorized one, the prediction moves late.

    Paper: the abstract; its formula was not obtained, this is the simplest with its meaning.
    Differs: embeddings are blended as encoded, pooled vectors too; what a mask hides stays hidden.

    Attributes:
        step: h, how much of no prompt is blended in.
    """

    step: float = 0.05

    def __post_init__(self) -> None:
        if not SMALLEST <= self.step <= 1:
            raise ValueError(f"step={self.step}: name a share from {SMALLEST:g} to 1")

    def score_recording(self, recording: Recording) -> Scores:
        """Score every prompt at every seed; `columns` holds the ratio to the magnitude, 1 for a straight path."""
        start = recording.start
        moved = recording.predict(start.cond.x, start.t, blended(recording.rows, recording.empty, self.step))
        change = recording.table(moved.gap(start.cond) / self.step)
        return Scores(change, columns={"late": change / recording.table(start.gap).clamp(min=1e-12)})


def blended(cond: Condition, other: Condition, share: float) -> Condition:
    """Conditions with a share of others, row by row, the shorter ones padded; masks and ids stay as they are."""
    both = cond.followed_by(other)
    own, others = both[: len(cond)], both[len(cond) :]
    embeds = own.embeds.lerp(others.embeds, share)
    pooled = None if own.pooled is None or others.pooled is None else own.pooled.lerp(others.pooled, share)
    return replace(own, embeds=embeds, pooled=pooled, texts=None)
