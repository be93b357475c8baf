"""Whether pictures of different seeds are one picture."""

from __future__ import annotations

from dataclasses import dataclass

import networkx as nx
import torch
from torch import Tensor

from unmemorize.core.batches import in_batches
from unmemorize.core.methods import Detector, method
from unmemorize.core.recording import Recording
from unmemorize.core.results import Scores
from unmemorize.metrics.similarity import small
from unmemorize.metrics.tiled import SIZES, tiled_distances

DECODED = 16  # pictures at once


@method(
    "clique",
    paper="Carlini et al. 2023, section 4.2",
    cost="what sampling and decoding a picture takes, a prompt and seed",
)
@dataclass(frozen=True)
class Clique(Detector):
    """How many seeds give the same picture: the largest set of pictures that are all alike.

    s_i = (size of the largest clique with picture i) − (its distance to the nearest other picture). The distance is
    tiled and below 1, so that it orders sets of one size. Two pictures are joined where their distance is at most
    `threshold`.

    Paper: Carlini et al. 2023: extracted where 10 of 500 pictures are a clique, at a distance of 0.15.
    Differs: every picture is reduced to 64 px, as where copies are looked for; a score, which needs no number of
    pictures; the distance that orders.

    Attributes:
        threshold: The root mean square difference, from 0 to 1, of the tiles that differ most.
    """

    threshold: float = 0.15

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold={self.threshold}: name a difference between 0 and 1")

    def score_recording(self, recording: Recording) -> Scores:
        """Score every prompt at every seed.

        Raises:
            UserError: There is only one seed.
        """
        recording.require_seeds_to_compare(self.name)
        pictures = small(_decoded(recording), SIZES[0]).split(len(recording.seeds))
        return Scores(torch.stack([self._scores(of_prompt) for of_prompt in pictures]))

    def _scores(self, pictures: Tensor) -> Tensor:
        distances = tiled_distances(pictures, pictures).fill_diagonal_(torch.inf)
        graph = nx.from_numpy_array((distances <= self.threshold).numpy())
        sizes = torch.ones(len(pictures))
        for clique in nx.find_cliques(graph):
            sizes[clique] = sizes[clique].clamp(min=len(clique))
        return sizes - distances.amin(dim=1).float()


def _decoded(recording: Recording) -> Tensor:
    """The pictures that sampling ends with, (rows, 3, h, w), on the CPU."""
    model, latents = recording.model, recording.steps()[-1].x_next

    def decoded(part: slice) -> Tensor:
        with torch.no_grad():
            return model.decode(latents[part]).float().cpu()

    return torch.cat([pictures for _, pictures in in_batches(model, len(latents), decoded, size=DECODED)])
