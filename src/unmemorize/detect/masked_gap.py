"""The magnitude of the text-conditional prediction where a map says that the picture is memorized."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from unmemorize.core.maps import end_attention, score_map
from unmemorize.core.methods import Detector, method
from unmemorize.core.recording import Recording, contrast_of
from unmemorize.core.results import Scores
from unmemorize.core.sample import Step

Map = Literal["bright-ending", "score-map"]


@method(
    "masked-gap",
    paper="Chen et al. 2025",
    cost="2 evaluations a step, prompt and seed, as sampling takes, and 1 at the last for the end token's attention",
    needs=("unconditional",),
)
@dataclass(frozen=True)
class MaskedGap(Detector):
    """The text-conditional magnitude under a map of where the picture is memorized, averaged over all sampling steps.

    mean_t ‖(ŷ_c − ŷ_∅) ∘ m‖ / mean(m), ŷ the trained output and m a map of the last step. Of a template a part of the
    picture is memorized, and the magnitude of the whole picture is mostly that of the rest.

    Paper: Chen et al. 2025, Bright Ending (m the attention to the end token at the last step).
    Differs: predictions and map are of one path, where the public code samples each picture twice; `score-map`, Kim and
    Lee's difference of scores at the last step, applies to families without cross-attention, too.

    Attributes:
        mask: The map.
    """

    mask: Map = "bright-ending"

    def score_recording(self, recording: Recording) -> Scores:
        """Score every prompt at every seed; `columns` holds the masked magnitude by step, (n, seeds, steps).

        Raises:
            NotApplicable: Guidance is off; or the map is of attention, which the family's adapter does not give, or
                prompts have no end token that is known.
        """
        steps = recording.steps()
        contrasts = [contrast_of(step, self.name) for step in steps]
        mask = self._map(recording, steps[-1])
        weights = (mask / mask.mean(dim=(1, 2), keepdim=True)).flatten(1)
        norms = []
        for contrast in contrasts:
            difference = contrast.difference.unflatten(1, (-1, weights.shape[1]))
            norms.append((difference * weights[:, None]).flatten(1).norm(dim=1))
        masked = recording.table(torch.stack(norms, dim=1))
        return Scores(masked.mean(dim=2), columns={"text_norm": masked})

    def _map(self, recording: Recording, last: Step) -> Tensor:
        """The map of every row, (rows, h, w)."""
        if self.mask == "score-map":
            return score_map(last)
        return end_attention(last, recording.rows, *last.x.shape[2:])
