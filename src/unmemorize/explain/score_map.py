"""The score-difference map: where in a picture the prompt still changes the score in the last steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, Literal

import torch

from unmemorize.core.bounds import Share
from unmemorize.core.errors import NotApplicable
from unmemorize.core.maps import score_map
from unmemorize.core.methods import Explainer, Subject, method
from unmemorize.core.model import Condition
from unmemorize.core.results import Regions
from unmemorize.core.sample import Step, trajectory

LAST = 0.1  # of the sampling steps: the paper's words are "the last"


def last_steps(subject: Subject, cond: Condition, seeds: Sequence[int], share: float) -> Iterator[Step]:
    """The last share of the sampling steps, at least one.

    Raises:
        NotApplicable: Guidance is off, so there is no unconditional prediction along the way.
    """
    if subject.guidance <= 1:
        raise NotApplicable("a map needs the unconditional prediction: sample with guidance above 1")
    model = subject.model
    total = len(model.schedule(subject.steps).timesteps)
    first = total - max(round(share * total), 1)
    yield from islice(trajectory(model, cond, seeds=seeds, sampler=subject.sampler), first, None)


@method(
    "score-map",
    paper="Kim and Lee 2026",
    cost="nothing beyond sampling a picture a seed",
    needs=("unconditional",),
)
@dataclass(frozen=True)
class ScoreMap(Explainer):
    """Where in the pictures of a prompt it still changes the score near the end: what is memorized varies no more.

    The squared difference of the conditional and the unconditional score, summed over channels, averaged over the last
    steps.

    Paper: Kim and Lee 2026, the cheap stand-in for the difference of curvatures; how many steps it takes was not read.

    Attributes:
        last: The share of sampling steps, from the end, that are read.
    """

    says: ClassVar[Literal["words", "regions"]] = "regions"

    last: Share = LAST

    def explain(self, subject: Subject, prompt: str, *, seeds: Sequence[int]) -> Regions:
        """The value of every place, one picture a seed."""
        model, cond, maps = subject.model, subject.model.encode([prompt] * len(seeds)), []
        with model.counted() as cost:
            for step in last_steps(subject, cond, seeds, self.last):
                maps.append(score_map(step))
        return Regions(prompt, step.x_next.cpu(), torch.stack(maps).mean(dim=0).cpu(), cost.forward)
