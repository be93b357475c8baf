"""Random changes to a prompt or its embedding: what other mitigations are compared with, and train with."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from unmemorize.core.bounds import Draws
from unmemorize.core.errors import NotApplicable
from unmemorize.core.methods import Acts, Mitigation, Subject, method
from unmemorize.core.model import Condition, DiffusionModel, typed
from unmemorize.core.sample import Sampler


@dataclass(frozen=True)
class Perturbation(Mitigation):
    """A random change to every prompt, drawn by its picture's seed."""

    acts: ClassVar[Acts] = "condition"

    @abstractmethod
    def changed(self, model: DiffusionModel, cond: Condition, seeds: Sequence[int]) -> Condition:
        """Other conditions, one seed a row."""

    @contextmanager
    def applied(self, subject: Subject) -> Iterator[Subject]:
        """The subject, drawn from with changed prompts."""
        sampler = PerturbedSampler(subject.sampler.steps, subject.sampler.guidance, self)
        yield replace(subject, sampler=sampler)


@dataclass(frozen=True)
class PerturbedSampler(Sampler):
    """A sampler that changes prompts before it starts."""

    perturbation: Perturbation | None = None

    def start(
        self, model: DiffusionModel, cond: Condition, noise: Tensor, seeds: Sequence[int]
    ) -> tuple[Condition, Tensor]:
        """The changed prompts, and the noise as it is."""
        changed = cond if self.perturbation is None else self.perturbation.changed(model, cond, seeds)
        return changed, noise


@method("embedding-noise", paper="Somepalli et al. 2023 (DCR)", cost="none")
@dataclass(frozen=True)
class EmbeddingNoise(Perturbation):
    """Gaussian noise on the embeddings of a prompt.

    Attributes:
        scale: Its standard deviation.
    """

    scale: float = 0.1

    def changed(self, model: DiffusionModel, cond: Condition, seeds: Sequence[int]) -> Condition:
        """The embeddings with noise, which no text stands for any more."""
        rows = []
        for embeds, seed in zip(cond.embeds, seeds, strict=True):
            rows.append(add_embedding_noise(embeds, scale=self.scale, seed=seed))
        return cond.with_embeds(torch.stack(rows))


@dataclass(frozen=True)
class MoreWords(Perturbation):
    """Words inserted into a prompt, each at a random place.

    Attributes:
        count: How many.
    """

    count: Draws = 4

    @abstractmethod
    def extended(self, model: DiffusionModel, prompt: str, seed: int) -> str:
        """The prompt with more words."""

    def changed(self, model: DiffusionModel, cond: Condition, seeds: Sequence[int]) -> Condition:
        """The longer prompts, encoded.

        Raises:
            NotApplicable: There are no prompts, but embeddings.
        """
        if cond.texts is None:
            raise NotApplicable(f"{self.name} changes words: embeddings without a text have none")
        return model.encode([self.extended(model, text, seed) for text, seed in zip(cond.texts, seeds, strict=True)])


@method("random-words", paper="Somepalli et al. 2023 (DCR)", cost="none", needs=("tokens",))
@dataclass(frozen=True)
class RandomWords(MoreWords):
    """Random words of the model's vocabulary, each at a random place."""

    def extended(self, model: DiffusionModel, prompt: str, seed: int) -> str:
        """The prompt with random words."""
        return add_random_words(prompt, typed(model).vocabulary, count=self.count, seed=seed)


@method("random-numbers", paper="Somepalli et al. 2023 (DCR)", cost="none")
@dataclass(frozen=True)
class RandomNumbers(MoreWords):
    """Random numbers below 100,000, each at a random place."""

    def extended(self, model: DiffusionModel, prompt: str, seed: int) -> str:
        """The prompt with random numbers."""
        return add_random_numbers(prompt, count=self.count, seed=seed)


@method("repeated-words", paper="Somepalli et al. 2023 (DCR)", cost="none")
@dataclass(frozen=True)
class RepeatedWords(MoreWords):
    """Words of the prompt itself once more, each at a random place."""

    def extended(self, model: DiffusionModel, prompt: str, seed: int) -> str:
        """The prompt with some of its words repeated."""
        return repeat_random_words(prompt, count=self.count, seed=seed)


def add_random_words(prompt: str, vocabulary: Sequence[str], *, count: int = 4, seed: int) -> str:
    """Insert `count` random words of the vocabulary, each at a random place.

    Paper: Somepalli et al. 2023 (DCR), random word addition; used as a baseline by Wen et al. 2024.
    """
    rng = random.Random(seed)
    return _insert(prompt, [rng.choice(vocabulary) for _ in range(count)], rng)


def add_random_numbers(prompt: str, *, count: int = 4, seed: int) -> str:
    """Insert `count` random numbers below 100,000, each at a random place.

    Paper: Somepalli et al. 2023 (DCR), random number addition.
    """
    rng = random.Random(seed)
    return _insert(prompt, [str(rng.randrange(100_000)) for _ in range(count)], rng)


def repeat_random_words(prompt: str, *, count: int = 4, seed: int) -> str:
    """Insert `count` copies of random words of the prompt itself, each at a random place; an empty prompt stays empty.

    Paper: Somepalli et al. 2023 (DCR), random word repetition.
    """
    rng = random.Random(seed)
    words = prompt.split()
    return _insert(prompt, [rng.choice(words) for _ in range(count)], rng) if words else prompt


def add_embedding_noise(embeds: Tensor, *, scale: float = 0.1, seed: int) -> Tensor:
    """Add Gaussian noise of standard deviation `scale` to the embeddings of one prompt, (tokens, width).

    Paper: Somepalli et al. 2023 (DCR), Gaussian noise on the text embedding, 0.1.
    """
    noise = torch.randn(embeds.shape, generator=torch.Generator("cpu").manual_seed(seed))
    return embeds + scale * noise.to(embeds)


def _insert(prompt: str, words: Sequence[str], rng: random.Random) -> str:
    parts = prompt.split()
    for word in words:
        parts.insert(rng.randint(0, len(parts)), word)
    return " ".join(parts)
