"""Which words of a prompt carry its memory, with a second opinion."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unmemorize.core.errors import NotApplicable, UserError
from unmemorize.core.run import Progress
from unmemorize.core.shards import merge_shards, run_shards
from unmemorize.data.source import Prompt
from unmemorize.explain.tokens import leave_one_out, rank_agreement, word_significance
from unmemorize.models.load import load
from unmemorize.models.unet import UNetModel


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


def explain_prompts(
    model: UNetModel, prompts: Sequence[Prompt], run: Path, progress: Progress, *, seeds: Sequence[int], steps: int
) -> None:
    """Write `scores/explain.parquet`: per prompt where each word starts and stops, its significance, and the cost.

    Raises:
        NotApplicable: No prompt holds a word.
    """
    worded = [p for p in prompts if p.text.strip()]
    if not worded:
        raise NotApplicable("no prompt holds a word")

    def work(piece: Sequence[Prompt]) -> list[dict[str, Any]]:
        rows = []
        for prompt in piece:
            found = word_significance(model, prompt.text, seeds=seeds, steps=steps)
            starts, stops = (list(ends) for ends in zip(*found.spans, strict=True))
            words = {"starts": starts, "stops": stops, "significance": list(found.significance)}
            rows.append({"id": prompt.id} | words | {"evaluations": found.evaluations})
        return rows

    for done in run_shards(worded, work, folder=run / "shards" / "explain", size=4):
        progress("explain", done, len(worded))
    merge_shards(run / "shards" / "explain", run / "scores" / "explain.parquet")
