"""A model that was tuned before: its denoiser's weights in the place of the model's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from unmemorize.core.hooks import replaced
from unmemorize.core.methods import Acts, Mitigation, Subject


@dataclass(frozen=True)
class Tuned(Mitigation):
    """Other values of the denoiser's parameters, by name; in a command a folder stands for it.

    Attributes:
        folder: Where they came from.
        fingerprint: That of the tuned model.
        values: The values, on any device.
    """

    acts: ClassVar[Acts] = "weights"

    folder: str
    fingerprint: str
    values: Mapping[str, Tensor]

    @contextmanager
    def applied(self, subject: Subject) -> Iterator[Subject]:
        """The subject with these weights, for the length of a block; afterwards they are the old ones bit for bit."""
        with replaced(subject.model.denoiser, self.values):
            yield subject
