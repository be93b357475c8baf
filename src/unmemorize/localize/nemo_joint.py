"""NeMo for joint attention: the value channels of the text's own stream, recorded in one evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unmemorize.core.hooks import record
from unmemorize.core.methods import method
from unmemorize.core.model import Condition, DiffusionModel
from unmemorize.localize.nemo import Nemo
from unmemorize.localize.reference import Start

SEED = 0  # whose first sampling step activations are recorded at


@method(
    "nemo-joint",
    paper='ours, after Hintersdorf et al. 2024, "Finding NeMo"',
    cost="40 evaluations a prompt without refining, 800 and more with it; 11 for every ordinary prompt, once a model",
    needs=("ordinary",),
)
@dataclass(frozen=True)
class JointNemo(Nemo):
    """NeMo's search in the value projections that text tokens have to themselves where text and picture attend jointly.

    There no activation depends on the prompt alone: timestep and picture have changed the text before each layer. So
    |a| is the mean over the text's tokens in one evaluation, at the first sampling step of one seed, and is compared
    with that of ordinary prompts at the same seed. To block a channel is to block it for every token of the text and
    for none of the picture. What a pooled vector says goes past these layers. The control is the same search aimed at
    ordinary prompts.

    Paper: Hintersdorf et al. 2024, "Finding NeMo", for the search.
    Differs: the layers, and where activations are taken; a transformer has no down path, `down-mid` is the first half
    of its layers; everything else as `nemo` differs.
    """

    def projections(self, model: DiffusionModel) -> Mapping[str, nn.Linear]:
        """Value projections of the text's own stream.

        Raises:
            NotApplicable: The model has none.
        """
        return model.text_stream_values(self.layers)

    def activations(self, model: DiffusionModel, cond: Condition) -> dict[str, Tensor]:
        """Mean of |value| over the text's tokens of every channel: (prompts, width) by module name."""
        names = list(model.text_stream_values())
        start = Start.of(model, [SEED])
        first = torch.zeros(1, dtype=torch.long)
        means: dict[str, list[Tensor]] = {name: [] for name in names}
        for row in range(len(cond)):  # alone, for in some families prompts of one call are padded to the longest
            with record(model.denoiser, names) as outputs:
                start.differences(model, cond[[row]], first)
            for name, (values,) in outputs.items():
                means[name].append(values.abs().float().mean(1))
        return {name: torch.cat(rows) for name, rows in means.items()}
