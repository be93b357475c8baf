"""Which words of a prompt carry its memory, by several methods, and copies without the first of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from unmemorize.core.errors import NotApplicable, UserError
from unmemorize.core.model import DiffusionModel
from unmemorize.core.results import Explanation
from unmemorize.core.run import Progress
from unmemorize.core.shards import merge_shards, run_shards
from unmemorize.data.source import Prompt
from unmemorize.explain.inputs import word_gradient_input
from unmemorize.explain.tokens import leave_one_out, rank_agreement, word_significance
from unmemorize.explain.words import measure, occurrences, without
from unmemorize.models.load import load

GRADIENTS: dict[str, Callable[..., Explanation]] = {
    "gradient": word_significance,
    "gradient-input": word_gradient_input,
}
LEAVE_ONE_OUT = "leave-one-out"
Row = dict[str, Any]


@dataclass(frozen=True)
class ExplainSpec:
    """How words are explained.

    `window` is of the `steps` sampling steps, and `pool` (sum, max or mean) puts the tokens of a word together.
    `method` is gradient, gradient-input or leave-one-out; `check` adds leave-one-out to another method. `guidance` is
    that of pictures generated with and without a word.
    """

    model: str
    seeds: tuple[int, ...]
    steps: int = 50
    window: tuple[int, int] = (0, 1)
    pool: str = "sum"
    method: str = "gradient"
    check: bool = False
    guidance: float | None = 7.5


def explain(spec: ExplainSpec, prompt: str) -> Row:
    """The value of every word and special token of a prompt.

    Raises:
        UserError: The prompt holds no word, or the model, the window or the method cannot be used.
    """
    if not prompt.strip():
        raise UserError("the prompt is empty: name one with at least a word")
    first, last = spec.window
    if not 0 <= first < last <= spec.steps:
        raise UserError(f"steps {first}:{last} of {spec.steps}: name a window inside the sampling steps")
    if spec.method == LEAVE_ONE_OUT and (spec.window, spec.pool) != ((0, 1), "sum"):
        raise UserError(f"--method {LEAVE_ONE_OUT} reads the first step and whole words: leave out --steps and --pool")
    model, seeds, steps = load(spec.model), spec.seeds, spec.steps
    if spec.method == LEAVE_ONE_OUT:
        explanation = leave_one_out(model, prompt, seeds=seeds, steps=steps)
    else:
        gradient = GRADIENTS[spec.method]
        explanation = gradient(model, prompt, seeds=seeds, steps=steps, window=spec.window, pool=spec.pool)
    pairs = zip(explanation.words, explanation.significance, strict=True)
    words: list[Row] = [{"word": word, "significance": value} for word, value in pairs]
    result: Row = {"method": spec.method, "words": words}
    result |= {"special": explanation.special, "evaluations": explanation.evaluations}
    if spec.check:
        second = leave_one_out(model, prompt, seeds=seeds, steps=steps)
        for word, value in zip(words, second.significance, strict=True):
            word["magnitude_lost_without"] = value
        result["rank_agreement"] = rank_agreement(explanation.significance, second.significance)
        result["evaluations"] += second.evaluations
    return result


def explain_prompts(
    model: DiffusionModel,
    prompts: Sequence[Prompt],
    run: Path,
    progress: Progress,
    *,
    spec: ExplainSpec,
    copies: Mapping[str, Callable[[Tensor], list[bool]]],
) -> None:
    """Write `scores/explain.parquet`: the words of each prompt, their significance, and copies without the first word.

    Args:
        model: The model.
        prompts: What to explain.
        run: The run directory.
        progress: Told of prompts that are done.
        spec: Seeds and steps of the gradient and of the pictures with and without a word, and their guidance.
        copies: By id of a prompt that gave a copy: which of some pictures (n, 3, h, w) are copies of that picture.

    Raises:
        NotApplicable: No prompt holds a word.
    """
    worded = [p for p in prompts if p.text.strip()]
    if not worded:
        raise NotApplicable("no prompt holds a word")

    def work(shard: Sequence[Prompt]) -> list[Row]:
        rows = []
        for prompt in shard:
            with model.counted() as cost:
                explanation = word_significance(model, prompt.text, seeds=spec.seeds, steps=spec.steps)
                row = _row(prompt.id, explanation)
                if prompt.id in copies and len(explanation.words) > 1:
                    row |= _without_first(model, explanation, spec, copies[prompt.id])
            rows.append(row | {"evaluations": cost.forward})
        return rows

    for done in run_shards(worded, work, folder=run / "shards" / "explain", size=4):
        progress("explain", done, len(worded))
    merge_shards(run / "shards" / "explain", run / "scores" / "explain.parquet")


def _without_first(
    model: DiffusionModel, explanation: Explanation, spec: ExplainSpec, copied: Callable[[Tensor], list[bool]]
) -> Row:
    """The word of highest significance, and copies among the pictures of the prompt with and without it."""
    prompt = explanation.prompt
    first = max(range(len(explanation.words)), key=explanation.significance.__getitem__)
    left_out = without(prompt, occurrences(prompt, explanation.spans[first]))
    whole, rest = measure(model, [prompt, left_out], copied, seeds=spec.seeds, steps=spec.steps, guidance=spec.guidance)
    copies = {"copies_with": whole.copies, "copies_without": rest.copies}
    return {"omitted": first, "pictures": len(spec.seeds)} | copies


def _row(name: str, explanation: Explanation) -> Row:
    starts = [start for start, _ in explanation.spans]
    stops = [stop for _, stop in explanation.spans]
    row: Row = {"id": name, "starts": starts, "stops": stops, "significance": list(explanation.significance)}
    row |= explanation.special
    return row | dict.fromkeys(("omitted", "pictures", "copies_with", "copies_without"))
