"""Bright Ending: where in a picture the end token has attention at the last step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from unmemorize.core.maps import end_attention
from unmemorize.core.methods import Explainer, Subject, method
from unmemorize.core.results import Regions
from unmemorize.core.sample import trajectory


@method(
    "bright-ending",
    paper="Chen et al. 2025",
    cost="1 evaluation a seed beyond sampling",
    needs=("attention",),
)
@dataclass(frozen=True)
class BrightEnding(Explainer):
    """Where in the pictures of a prompt its end token has attention at the last step: there the memorized is drawn.

    Averaged over heads and over the finest layers of cross-attention on the way down.

    Paper: Chen et al. 2025 (Stable Diffusion's two layers at 64 × 64).
    Differs: attention is scaled to the size of latents where its layers are coarser.
    """

    says: ClassVar[Literal["words", "regions"]] = "regions"

    def explain(self, subject: Subject, prompt: str, *, seeds: Sequence[int]) -> Regions:
        """The value of every place, one picture a seed."""
        model, cond = subject.model, subject.model.encode([prompt] * len(seeds))
        with model.counted() as cost:
            *_, step = trajectory(model, cond, seeds=seeds, sampler=subject.sampler)
            maps = end_attention(step, cond, *step.x.shape[2:])
        return Regions(prompt, step.x_next.cpu(), maps.cpu(), cost.forward)
