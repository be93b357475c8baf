"""Ordinary prompts for models that bring none: plain descriptions that no training caption is likely to equal."""

from __future__ import annotations

import random

_SUBJECTS = (
    "a brown horse", "an old woman", "two children", "a red bicycle", "a bowl of soup", "a sleeping cat",
    "a wooden boat", "a tall lamp", "three birds", "a stone bridge", "a yellow car", "a man with a hat",
    "a small house", "a basket of pears", "a white dog", "a guitar",
    "a snowy hill", "a glass of water", "a painted door", "a street musician",
)  # fmt: skip
_PLACES = (
    "in a quiet harbour", "beside a river", "on a kitchen table", "under a cloudy sky", "in front of a brick wall",
    "at a village market", "in an empty room", "on a gravel road", "near a lighthouse", "in tall grass",
)  # fmt: skip
_MANNERS = ("photo", "watercolour", "pencil sketch", "oil painting", "close-up", "wide shot")


def ordinary_prompts(count: int = 150) -> list[str]:
    """Different plain prompts, always the same ones.

    Raises:
        ValueError: More are asked for than there are.
    """
    every = [f"{s} {p}, {m}" for s in _SUBJECTS for p in _PLACES for m in _MANNERS]
    return random.Random(0).sample(every, count)
