"""What mitigations that act while a picture is sampled share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar

from unmemorize.core.errors import NotApplicable
from unmemorize.core.methods import Mitigation, Subject
from unmemorize.core.sample import Sampler


@dataclass(frozen=True)
class BySampler(Mitigation):
    """A mitigation that is another sampler.

    `guided` says whether it changes what guidance does, and has nothing to change where guidance is off.
    """

    guided: ClassVar[bool] = False

    @abstractmethod
    def sampler(self, base: Sampler) -> Sampler:
        """The mitigating sampler, with the steps and the guidance scale of `base`."""

    @contextmanager
    def applied(self, subject: Subject) -> Iterator[Subject]:
        """The subject, drawn from by the mitigating sampler.

        Raises:
            NotApplicable: It changes guidance, which is off.
        """
        if self.guided and subject.guidance <= 1:
            raise NotApplicable("guidance is off: there is nothing to change about it")
        yield replace(subject, sampler=self.sampler(subject.sampler))
