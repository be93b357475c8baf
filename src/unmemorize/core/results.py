"""What methods return: frozen records, passed between kinds of method and written to run directories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from unmemorize.core.model import Condition

Units = Literal["channels", "weights"]


@dataclass(frozen=True)
class Pairs:
    """Pictures with captions: latents (n, c, h, w), and one row of `captions` a picture."""

    latents: Tensor
    captions: Condition

    def __len__(self) -> int:
        return len(self.latents)


@dataclass(frozen=True)
class Scores:
    """Scores of n prompts or pictures: higher = more memorized.

    Attributes:
        by_seed: A score for every seed, (n, seeds), on the CPU.
        evaluations: What they cost the denoiser; of a detector's, `score_each` counts it.
        columns: What else was measured, (n, seeds) or (n, seeds, steps) each; it is kept beside the scores.
    """

    by_seed: Tensor
    evaluations: int = 0
    columns: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def value(self) -> Tensor:
        """The mean over seeds, (n,)."""
        return self.by_seed.mean(dim=1)


@dataclass(frozen=True)
class Explanation:
    """What each word of a prompt contributes to the text-conditional magnitude.

    `spans` are the words' characters in the prompt; `special` has what falls on the begin, end and padding tokens.
    """

    prompt: str
    spans: tuple[tuple[int, int], ...]
    significance: tuple[float, ...]
    special: dict[str, float]
    evaluations: int

    @property
    def words(self) -> tuple[str, ...]:
        """The words, as they stand in the prompt."""
        return tuple(self.prompt[start:stop] for start, stop in self.spans)


@dataclass(frozen=True)
class Regions:
    """Where in the pictures of a prompt its memory shows.

    Attributes:
        prompt: The prompt.
        latents: The pictures, one a seed, (seeds, c, h, w).
        maps: A value for every place of a latent, (seeds, h, w): higher is more, 0 or more.
        evaluations: What they cost the denoiser, sampling included.
    """

    prompt: str
    latents: Tensor
    maps: Tensor
    evaluations: int

    def above(self, threshold: float) -> Tensor:
        """The places whose value is more than `threshold` times the picture's highest, (seeds, h, w) bool.

        A threshold is chosen on other pictures than those it is reported on.
        """
        return self.maps > threshold * self.maps.amax(dim=(1, 2), keepdim=True)


@dataclass(frozen=True)
class Match:
    """A generated picture beside its nearest training picture.

    `value` is what the criterion judges, `distance` the plain distance; `verdict` tells verbatim copies from templates.
    Of a `mirrored` copy all of these are its mirror image's.
    """

    nearest: str
    distance: float
    value: float
    verdict: str
    mirrored: bool = False

    @property
    def copied(self) -> bool:
        """Whether the picture is a copy, verbatim or of a template."""
        return self.verdict != "none"


@dataclass(frozen=True)
class Surrogates:
    """Latents (n, c, h, w) of other pictures, and the number of the memorized picture each stands for, (n,)."""

    latents: Tensor
    stands_for: Tensor

    @property
    def pictures(self) -> int:
        """How many memorized pictures there are; each has a surrogate."""
        return int(self.stands_for.max()) + 1


@dataclass(frozen=True)
class Trained:
    """The outcome of a training run.

    Attributes:
        updates: Updates made.
        checks: The number of updates and the rate of every check.
        losses: By name, (updates,).
        evaluations: The denoiser's by the objective, over all processes.
        checking: Those of the checks.
        seconds: Those of the first process in updates, without the checks.
    """

    updates: int
    checks: tuple[tuple[int, float], ...]
    losses: dict[str, Tensor]
    evaluations: int
    checking: int
    seconds: float


@dataclass(frozen=True)
class Found:
    """What an attack found: conditions by number of updates, a row a picture, losses (updates, pictures), its cost.

    `evaluations` are the denoiser's, each with a backward pass to the embedding.
    """

    conditions: dict[int, Condition]
    losses: Tensor
    evaluations: int

    @property
    def last(self) -> Condition:
        """The conditions after the last update."""
        return self.conditions[max(self.conditions)]


@dataclass(frozen=True)
class PromptUnits:
    """The units found for one prompt, as in `Localization`, and what was measured on the way."""

    prompt: str
    masks: Mapping[str, Tensor]
    facts: Mapping[str, float]


@dataclass(frozen=True)
class Localization:
    """Where a denoiser holds what it memorized, by module name.

    A mask is boolean: (out,) for the output channels of a value projection, (out, in) for the entries of a weight
    matrix, as `units` says. Modules without any are left out. `evaluations` is what the search cost the denoiser.
    """

    method: str
    units: Units
    masks: Mapping[str, Tensor]
    parameters: Mapping[str, bool | int | float | str]
    seeds: tuple[int, ...]
    prompts: tuple[str, ...]
    evaluations: int
    per_prompt: tuple[PromptUnits, ...] = ()

    @property
    def per_layer(self) -> dict[str, int]:
        """How many units each module has."""
        return {name: int(mask.sum()) for name, mask in self.masks.items()}

    @property
    def selected(self) -> int:
        """How many units there are."""
        return sum(self.per_layer.values())


def union(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The units that are in any of the parts; modules without any are left out."""
    masks: dict[str, Tensor] = {}
    for part in parts:
        for name, mask in part.items():
            if mask.any():
                masks[name] = masks[name] | mask if name in masks else mask
    return dict(sorted(masks.items()))
