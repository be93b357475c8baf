"""How much the predicted noise changes from one step to the next."""

from __future__ import annotations

from dataclasses import dataclass

from unmemorize.core.bounds import SamplingSteps
from unmemorize.core.errors import NotApplicable
from unmemorize.core.methods import Detector, method
from unmemorize.core.recording import Recording, wide
from unmemorize.core.results import Scores


@method(
    "dsm",
    paper="DSM 2026 (github.com/randomnameforicml/icml-2026)",
    cost="2 evaluations a step, prompt and seed, over the first three steps",
)
@dataclass(frozen=True)
class Dsm(Detector):
    """The squared distance between the noise predicted for the prompt at one sampling step and at the next.

    ‖ε(x_{k+1}, e_p) − ε(x_k, e_p)‖₂² along the guided path.

    Paper: known from its public code alone, whose DSM₁₂ is k = 1.
    Differs: the path is that of the model's own sampler, DDIM there.

    Attributes:
        step: k, from 0.
    """

    step: SamplingSteps = 1

    def __post_init__(self) -> None:
        if self.step < 0:
            raise ValueError(f"step={self.step}: steps are counted from 0")

    def score_recording(self, recording: Recording) -> Scores:
        """Score every prompt at every seed.

        Raises:
            NotApplicable: Sampling has not so many steps.
        """
        steps = recording.recorder.sampler.steps_of(recording.model)
        if steps < self.step + 2:
            raise NotApplicable(f"dsm compares sampling steps {self.step + 1} and {self.step + 2}: there are {steps}")
        before, after = (wide(step.cond.eps) for step in recording.steps(self.step + 2)[-2:])
        return Scores(recording.table((after - before).flatten(1).square().sum(dim=1)))
