"""How near what a model draws for a picture's caption comes to the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from unmemorize.core.errors import NotApplicable
from unmemorize.core.methods import PictureTest, Subject, method
from unmemorize.core.results import Pairs, Scores
from unmemorize.core.sample import generate
from unmemorize.detect.picture_level import distances


@method("nearest-generation", paper="ours, after Carlini et al. 2023", cost="a picture a seed")
@dataclass(frozen=True)
class NearestGeneration(PictureTest):
    """The distance of a picture to those that are generated from its caption, as a negative number.

    The root mean square over pixels, of the nearest of the seeds: one number a picture. What the VAE cannot keep of the
    picture does not count.
    """

    def score(self, subject: Subject, pictures: Pairs, *, seeds: Sequence[int]) -> Scores:
        """Score every picture; `columns` holds the distance at each seed, (n, seeds).

        Raises:
            NotApplicable: A picture has no caption.
        """
        if pictures.captions.texts is None or not all(pictures.captions.texts):
            raise NotApplicable(f"{self.name} draws from captions: name pictures and controls that have one each")
        measured = []
        with subject.model.counted() as cost:
            for seed in seeds:
                streams = [seed] * len(pictures)
                images = generate(subject.model, pictures.captions, seeds=streams, sampler=subject.sampler)
                measured.append(distances(subject.model, pictures, images))
        distance = torch.stack(measured, dim=1)
        nearest = distance.amin(dim=1, keepdim=True).expand_as(distance)
        return Scores(-nearest, cost.forward, {"distance": distance})
