"""How evenly the words of a prompt share the attention at the end of sampling."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unmemorize.core.batches import in_batches
from unmemorize.core.errors import NotApplicable
from unmemorize.core.methods import Detector, method
from unmemorize.core.recording import ROWS, Recording
from unmemorize.core.results import Scores
from unmemorize.core.sample import Step


@method(
    "attention-entropy",
    paper="Ren et al. 2024, section 5.1",
    cost="2 evaluations a step, prompt and seed, as sampling takes, and 1 at the first and at the last fifth of steps",
    needs=("attention",),
)
@dataclass(frozen=True)
class AttentionEntropy(Detector):
    """The entropy of attention over the tokens at the end of sampling, and how much of it the summary has gained.

    E_end + (S_end − S_first), E = −Σ ā ln ā over all tokens and S the same sum over the end token and the padding
    behind it; ā is the attention to a token, its mean over layers, heads and places. "End" is the mean over the last
    fifth of the steps. Prompts that are not memorized come to attend to the begin token alone.

    Paper: Ren et al. 2024, the score D.
    Reference implementation: reads the rows of the prompts at batch size 1 only.
    """

    def score_recording(self, recording: Recording) -> Scores:
        """Score every prompt at every seed; `columns` holds the entropy at the end.

        Raises:
            NotApplicable: The family's adapter gives no attention, or prompts have no end token that is known.
        """
        mask = recording.rows.mask
        if mask is None:
            raise NotApplicable("prompts have no end token that is known")
        end = mask.sum(dim=1, keepdim=True) - 1
        summary = torch.arange(mask.shape[1], device=mask.device) >= end
        steps = recording.steps()
        last = steps[-max(len(steps) // 5, 1) :]
        ending = torch.stack([entropies(recording, step) for step in last]).mean(dim=0)
        gained = ((ending - entropies(recording, steps[0])) * summary).sum(dim=1)
        entropy = ending.sum(dim=1)
        return Scores(recording.table(entropy + gained), columns={"entropy": recording.table(entropy)})


def entropies(recording: Recording, step: Step) -> Tensor:
    """−ā ln ā of every token at a step, (rows, tokens); 0 where a token has no attention.

    Raises:
        NotApplicable: The family's adapter gives no attention.
    """
    model = recording.model

    def attention(part: slice) -> Tensor:
        layers: list[Tensor] = []

        def keep(layer: str, logits: Tensor) -> Tensor:
            layers.append(logits.float().softmax(dim=-1).mean(dim=(1, 2)))
            return logits

        with model.attending(keep), torch.no_grad():
            model.predict(step.scaled[part], step.t, recording.rows[part])
        return torch.stack(layers).mean(dim=0)

    shares = [rows for _, rows in in_batches(model, len(recording.rows), attention, size=ROWS)]
    entropy: Tensor = torch.special.entr(torch.cat(shares))
    return entropy
