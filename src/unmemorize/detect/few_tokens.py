"""How near a picture comes that a few searched token positions bring back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from unmemorize.core.bounds import Count
from unmemorize.core.methods import Attack, PictureTest, Subject, method, parse
from unmemorize.core.results import Pairs, Scores
from unmemorize.core.sample import generate, normal
from unmemorize.detect.picture_level import distances

APART = 1_000_000  # between the seed of a start and that of its search, whose noise is to be another


@method(
    "few-tokens",
    paper="Dhanuka et al. 2025, MAGIC",
    cost="400 evaluations with gradient and a picture, a picture and seed",
    needs=("gradients",),
)
@dataclass(frozen=True)
class FewTokens(PictureTest):
    """The distance of a picture to what DoRI makes of a few token positions, as a negative number.

    An embedding of all positions can tell a model a picture that it does not know; a few positions cannot, and suffice
    for one that it does. The search starts from N(0, I), so that the caption does not matter. The distance is the
    root mean square over pixels; what the VAE cannot keep of the picture does not count.

    Paper: Dhanuka et al. 2025, MAGIC, known from its abstract: a short conditioning that regenerates a picture.
    Differs: the search is DoRI's, whose number of free positions is the length; one distance instead of a threshold.

    Attributes:
        tokens: Token positions that are searched.
        updates: Updates of each search.
    """

    tokens: Count = 2
    updates: Count = 50

    def score(self, subject: Subject, pictures: Pairs, *, seeds: Sequence[int]) -> Scores:
        """Score every picture at every seed.

        Raises:
            UserError: There are fewer token positions.
        """
        model = subject.model
        search: Attack = parse("attack", f"dori:updates={self.updates},tokens={self.tokens}")
        measured = []
        with model.counted() as cost:
            for seed in seeds:
                streams = [seed] * len(pictures)
                start = pictures.captions.with_embeds(normal(pictures.captions.embeds[0], streams))
                found = search.attack(subject, pictures.latents, start, seeds=[APART + seed] * len(pictures))
                images = generate(model, found.last, seeds=streams, sampler=subject.sampler)
                measured.append(-distances(model, pictures, images))
        return Scores(torch.stack(measured, dim=1), cost.forward)
