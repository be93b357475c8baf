"""The sharpness of the text-conditional density at the first noise."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from unmemorize.core.methods import Detector, method
from unmemorize.core.recording import Contrast, Recording
from unmemorize.core.results import Scores

SMALLEST = 1e-6  # a smaller step is lost in the rounding of float32


@method(
    "sharpness",
    paper="Jeon et al. 2025 (SAIL), section 4",
    cost="3 evaluations a prompt and seed",
    needs=("unconditional",),
)
@dataclass(frozen=True)
class Sharpness(Detector):
    """How fast the text-conditional difference grows along itself at the first step, by finite differences.

    d = ‖J Δ‖₂, Δ(x) the difference that the prompt makes to the trained output, and J its Jacobian by x. For a model of
    the noise it is σ² ‖H s‖₂, s = −Δ/σ the difference of scores and H that of Hessians.

    Paper: Jeon et al. 2025, the metric ‖H s‖₂, in scores.
    Reference implementation: Jacobian-vector products by forward differentiation.
    Differs: in the trained output, since scores do not differ at α = 0; by finite differences, which every attention
    kernel allows, along the direction of Δx̂0, which is the score's in every parameterisation.

    Attributes:
        step: How far x is moved, as a share of its length.
    """

    step: float = 0.01

    def __post_init__(self) -> None:
        if not SMALLEST <= self.step <= 1:
            raise ValueError(f"step={self.step}: name a share from {SMALLEST:g} to 1")

    def score_recording(self, recording: Recording) -> Scores:
        """Score every prompt at every seed."""
        start = recording.start
        x = start.cond.x
        distance = self.step * x.float().flatten(1).norm(dim=1, keepdim=True)
        move = (distance * _direction(start)).reshape(x.shape).to(x)
        moved = recording.contrast(x + move, start.t)
        change = (moved.difference - start.difference).norm(dim=1) / distance[:, 0]
        return Scores(recording.table(change * start.gap))


def _direction(contrast: Contrast) -> Tensor:
    """The unit vector of the difference in clean latents, (rows, values); 0 where there is none."""
    # x̂0 falls with ε and v, so that this is the difference in the trained output or its opposite.
    sign = 1 if contrast.cond.kind == "sample" else -1
    difference = contrast.difference
    unit: Tensor = sign * difference / difference.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return unit
