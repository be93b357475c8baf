"""Which words of a prompt carry its memory, with a second opinion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from unmemorize.core.errors import UserError
from unmemorize.explain.tokens import leave_one_out, rank_agreement, word_significance
from unmemorize.models.load import load


def explain(
    model: str,
    prompt: str,
    *,
    seeds: Sequence[int],
    steps: int = 50,
    window: tuple[int, int] = (0, 1),
    pool: str = "sum",
    check: bool = False,
) -> dict[str, Any]:
    """The significance of every word and special token; with `check`, also the magnitude lost without each word.

    Raises:
        UserError: The prompt holds no word, or the model or the window cannot be used.
    """
    if not prompt.strip():
        raise UserError("the prompt is empty: name one with at least a word")
    if not 0 <= window[0] < window[1] <= steps:
        raise UserError(f"steps {window[0]}:{window[1]} of {steps}: name a window inside the sampling steps")
    loaded = load(model)
    found = word_significance(loaded, prompt, seeds=seeds, steps=steps, window=window, pool=pool)
    words = [{"word": w, "significance": s} for w, s in zip(found.words, found.significance, strict=True)]
    result: dict[str, Any] = {"words": words, "special": found.special, "evaluations": found.evaluations}
    if check:
        lost, spent = leave_one_out(loaded, prompt, seeds=seeds, steps=steps)
        for word, value in zip(words, lost, strict=True):
            word["magnitude_lost_without"] = value
        result["rank_agreement"] = rank_agreement(found.significance, lost)
        result["evaluations"] += spent
    return result
