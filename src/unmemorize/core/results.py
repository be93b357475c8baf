"""What methods return: frozen records, passed between kinds of method and written to run directories."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class NoiseTrace:
    """Per-image norms along sampling, (prompts, seeds, steps), and the denoiser evaluations they cost.

    `text` is the text-conditional magnitude, `uncond` the norm of the unconditional prediction, its control.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    text: Tensor
    uncond: Tensor
    evaluations: int

    @property
    def scores(self) -> Tensor:
        """The magnitude averaged over the steps, (prompts, seeds): higher = more memorized."""
        return self.text.mean(dim=2)


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
class Interval:
    """A statistic with its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Match:
    """A generated picture beside its nearest training picture.

    `value` is what the criterion judges, `distance` the plain distance; `verdict` tells verbatim copies from templates.
    """

    nearest: str
    distance: float
    value: float
    verdict: str


@dataclass(frozen=True)
class Attack:
    """Embeddings (pictures, tokens, width) by number of updates, losses (updates, pictures), and what it cost.

    `evaluations` are the denoiser's, each with a backward pass to the embedding.
    """

    embeds: dict[int, Tensor]
    losses: Tensor
    evaluations: int

    @property
    def found(self) -> Tensor:
        """The last embeddings, (pictures, tokens, width)."""
        return self.embeds[max(self.embeds)]
