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

    `error` is the share of `measured_on` pictures of the user's own, each compared with others than itself, that the
    rule calls copies, where it was measured; `error_high` is the upper end of its 95% interval.
    """

    name: str
    threshold: float
    recipe: str
    weights: str | None = None
    higher_is_closer: bool = False
    error: float | None = None
    error_high: float | None = None
    measured_on: int | None = None

    def __call__(self, value: float) -> bool:
        """Whether `value` says copy."""
        return value >= self.threshold if self.higher_is_closer else value <= self.threshold

    @property
    def said_of_errors(self) -> str:
        """How often the rule errs on the user's own pictures, in a sentence; empty where it was not measured."""
        if self.error is None or self.error_high is None or self.measured_on is None:
            return ""
        wrong = round(self.error * self.measured_on)
        return (
            f"The rule “{self.name}” calls {wrong} of {self.measured_on} training pictures copies of others "
            f"({self.error:.1%}, at most {self.error_high:.1%} with 95% confidence), each compared with all but its "
            "own duplicates."
        )
