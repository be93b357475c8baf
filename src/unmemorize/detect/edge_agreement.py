"""Whether one step from the noise draws the same edges at every seed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from unmemorize.core.batches import in_batches
from unmemorize.core.methods import Detector, method
from unmemorize.core.recording import Recording
from unmemorize.core.results import Scores

DECODED = 16  # pictures at once
LARGEST = 256  # pixels a side, to which larger pictures are reduced


@method(
    "edge-agreement",
    paper="Webster 2023, the black-box score",
    cost="1 evaluation, which noise-gap reads too, and one decoded picture a prompt and seed",
    needs=("unconditional",),
)
@dataclass(frozen=True)
class EdgeAgreement(Detector):
    """The share of pixels that are edges in more than half of the pictures that one guided step gives.

    The pictures are x̂0 of the first step, decoded; an edge is where the lengths of the Sobel gradients of the three
    colours add up to more than `threshold`. It is one number a prompt, the same at each of its seeds.

    Paper: Webster 2023, which reads the pictures of a service that samples in one step.
    Differs: pictures smaller than 256 px stay as they are.

    Attributes:
        threshold: The sum of the three gradients above which a pixel is an edge, of colours from 0 to 1.
        guidance: The guidance scale of the step.
    """

    threshold: float = 1.5
    guidance: float = 7.5

    def __post_init__(self) -> None:
        if self.threshold <= 0:
            raise ValueError(f"threshold={self.threshold}: name a sum of gradients above 0")

    def score_recording(self, recording: Recording) -> Scores:
        """Score every prompt; the score stands at each of its seeds.

        Raises:
            UserError: There is only one seed.
        """
        recording.require_seeds_to_compare(self.name)
        model, latents = recording.model, recording.start.guided(self.guidance).x0.to(recording.start.cond.x)

        def edges(part: slice) -> Tensor:
            with torch.no_grad():
                pictures = model.decode(latents[part]).float()
            return gradients(reduced(pictures)) > self.threshold

        drawn = recording.table(torch.cat([rows for _, rows in in_batches(model, len(latents), edges, size=DECODED)]))
        agreed = (drawn.mean(dim=1) > 0.5).float().mean(dim=(1, 2))
        return Scores(agreed[:, None].repeat(1, len(recording.seeds)))


def reduced(pictures: Tensor) -> Tensor:
    """Pictures (n, 3, h, w) whose shorter side has at most 256 pixels."""
    scale = LARGEST / min(pictures.shape[-2:])
    return pictures if scale >= 1 else F.interpolate(pictures, scale_factor=scale, mode="area")


def gradients(pictures: Tensor) -> Tensor:
    """The lengths of the Sobel gradients of the three colours, added up: (n, h, w)."""
    across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]).to(pictures)
    kernels = torch.stack([across, across.T])[:, None]
    colours = F.pad(pictures, (1, 1, 1, 1), mode="replicate").flatten(0, 1)[:, None]
    lengths = F.conv2d(colours, kernels).norm(dim=1)
    total: Tensor = lengths.unflatten(0, pictures.shape[:2]).sum(dim=1)
    return total
