"""Which words of a prompt carry its memory, by several methods, and copies without the first of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from unmemorize.core.errors import NotApplicable, UserError
from unmemorize.core.methods import Explainer, Subject, parse
from unmemorize.core.model import DiffusionModel
from unmemorize.core.results import Explanation
from unmemorize.core.run import Progress
from unmemorize.core.shards import merge_shards, run_shards
from unmemorize.core.specs import ExplainSpec
from unmemorize.data.source import Prompt
from unmemorize.explain.leave_one_out import LeaveOneOut
from unmemorize.explain.tokens import rank_agreement
from unmemorize.explain.words import measure, occurrences, without
from unmemorize.jobs.inputs import load_as_asked, subject_of

Row = dict[str, Any]
SPECIAL = ("begin", "end", "padding")  # tokens that are no words


def explain(spec: ExplainSpec) -> Row:
    """The value of every word and special token of the prompt.

    Raises:
        UserError: The prompt holds no word, or the model or the method cannot be used.
    """
    prompt = spec.prompt
    if not prompt.strip():
        raise UserError("the prompt is empty: name one with at least a word")
    explainer: Explainer = parse("explainer", spec.method)
    subject = subject_of(spec, load_as_asked(spec))
    explanation = explainer.explain(subject, prompt, seeds=spec.numbers)
    words: list[Row] = []
    for word, value in zip(explanation.words, explanation.significance, strict=True):
        words.append({"word": word, "significance": value})
    result: Row = {"method": explainer.name, "words": words}
    result |= {"special": explanation.special, "evaluations": explanation.evaluations}
    if spec.check:
        second = LeaveOneOut().explain(subject, prompt, seeds=spec.numbers)
        for row, value in zip(words, second.significance, strict=True):
            row["magnitude_lost_without"] = value
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
    explainer: Explainer = parse("explainer", spec.method)
    subject = subject_of(spec, model)

    def work(shard: Sequence[Prompt]) -> list[Row]:
        rows = []
        for prompt in shard:
            with model.counted() as cost:
                explanation = explainer.explain(subject, prompt.text, seeds=spec.numbers)
                row = _row(prompt.id, explanation)
                if prompt.id in copies and len(explanation.words) > 1:
                    row |= _without_first(subject, explanation, spec, copies[prompt.id])
            rows.append(row | {"evaluations": cost.forward})
        return rows

    for done in run_shards(worded, work, folder=run / "shards" / "explain", size=4):
        progress("explain", done, len(worded))
    merge_shards(run / "shards" / "explain", run / "scores" / "explain.parquet")


def _without_first(
    subject: Subject, explanation: Explanation, spec: ExplainSpec, copied: Callable[[Tensor], list[bool]]
) -> Row:
    """The word of highest significance, and copies among the pictures of the prompt with and without it."""
    prompt = explanation.prompt
    first = max(range(len(explanation.words)), key=explanation.significance.__getitem__)
    left_out = without(prompt, occurrences(prompt, explanation.spans[first]))
    whole, rest = measure(subject, [prompt, left_out], copied, seeds=spec.numbers)
    copies = {"copies_with": whole.copies, "copies_without": rest.copies}
    return {"omitted": first, "pictures": spec.seeds} | copies


def _row(name: str, explanation: Explanation) -> Row:
    starts = [start for start, _ in explanation.spans]
    stops = [stop for _, stop in explanation.spans]
    row: Row = {"id": name, "starts": starts, "stops": stops, "significance": list(explanation.significance)}
    row |= dict.fromkeys(SPECIAL) | explanation.special
    return row | dict.fromkeys(("omitted", "pictures", "copies_with", "copies_without"))
