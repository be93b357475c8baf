"""Random changes to a prompt: what inference- and training-time mitigations are compared with, and train with."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor


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
