"""The difference of two gradients: of the length of the predicted noise, with and without the prompt."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unmemorize.core.batches import in_batches
from unmemorize.core.hooks import frozen
from unmemorize.core.methods import Detector, method
from unmemorize.core.model import Condition
from unmemorize.core.recording import Recording, wide
from unmemorize.core.results import Scores

ROWS = 8  # with a gradient at once


@method(
    "metric-2",
    paper="DSM 2026 (github.com/randomnameforicml/icml-2026)",
    cost="1 evaluation with a gradient a prompt and seed, and 1 a seed for some prompts together; noise-gap's besides",
    needs=("gradients", "unconditional"),
)
@dataclass(frozen=True)
class Metric2(Detector):
    """The squared distance of the gradients, by x, of half the squared lengths of both predictions of the noise.

    ‖∇½‖ε(x, e_p)‖² − ∇½‖ε(x, e_∅)‖²‖₂² = ‖J_pᵀ ε_p − J_∅ᵀ ε_∅‖₂² at the first sampling step.

    Paper: known from its public code alone, which calls it so.
    """

    def score_recording(self, recording: Recording) -> Scores:
        """Score every prompt at every seed.

        Raises:
            NotApplicable: The first step is noise alone: both predictions of the noise are x.
        """
        recording.start.require_signal(self.name)
        seeds, x = len(recording.seeds), recording.start.uncond.x
        with frozen(recording.model.denoiser):
            prompts = self._gradients(recording, x, recording.rows)
            nothing = self._gradients(recording, x[:seeds], recording.empty[:seeds])
        difference = (prompts - nothing.repeat(len(recording.cond), 1)).square().sum(dim=1)
        return Scores(recording.table(difference))

    def _gradients(self, recording: Recording, x: Tensor, cond: Condition) -> Tensor:
        """∇½‖ε‖² by x, (rows, values)."""

        def gradient(part: slice) -> Tensor:
            given = x[part].detach().clone().requires_grad_()
            with torch.enable_grad():
                eps = recording.model.predict(given, recording.start.t, cond[part]).eps
                (slope,) = torch.autograd.grad(wide(eps).square().sum() / 2, given)
            return wide(slope).flatten(1)

        return torch.cat([rows for _, rows in in_batches(recording.model, len(x), gradient, size=ROWS)])
