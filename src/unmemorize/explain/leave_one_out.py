"""Leave one out: how much the magnitude falls when a word is not said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unmemorize.core.methods import Explainer, Subject, method
from unmemorize.core.results import Explanation
from unmemorize.core.sample import first_conditional, first_unconditional
from unmemorize.explain.words import occurrences, without, words_of


@method(
    "leave-one-out",
    paper="ours, of the magnitude of Wen et al. 2024",
    cost="words + 1 evaluations a seed, and one for the empty prompt",
    needs=("unconditional",),
)
@dataclass(frozen=True)
class LeaveOneOut(Explainer):
    """How much the first step's magnitude falls when each word is left out, wherever the prompt says it.

    It needs no gradient. Begin, end and padding tokens cannot be left out and have no value.
    """

    def explain(self, subject: Subject, prompt: str, *, seeds: Sequence[int]) -> Explanation:
        """The value of every word: higher carries more."""
        model, words = subject.model, words_of(prompt)
        variants = [prompt]
        for place in words:
            variants.append(without(prompt, occurrences(prompt, place)))
        with model.counted() as cost:
            empty = first_unconditional(model, seeds=seeds, steps=subject.steps)
            cond = first_conditional(model, model.encode(variants), empty, steps=subject.steps)
        values = cond.gap(empty.repeated(len(variants))).reshape(len(variants), len(seeds)).mean(1)
        lost = tuple((values[0] - values[1:]).tolist())
        return Explanation(prompt, tuple(words), lost, {}, cost.forward)
