"""What counts as a copy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["verbatim", "template", "none"]


@dataclass(frozen=True)
class Criterion:
    """A named rule: a value at or beyond `threshold` is a copy.

    `recipe` names the preprocessing, `weights` is the hash of the network, if there is one: values under different
    recipes or weights are not comparable, so all four are stored with every score.
    """

    name: str
    threshold: float
    recipe: str
    weights: str | None = None
    higher_is_closer: bool = False

    def __call__(self, value: float) -> bool:
        """Whether `value` says copy."""
        return value >= self.threshold if self.higher_is_closer else value <= self.threshold
