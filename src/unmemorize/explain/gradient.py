"""Word significance: the gradient of the text-conditional magnitude by each token's embedding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unmemorize.core.hooks import frozen
from unmemorize.core.methods import Explainer, Subject, method
from unmemorize.core.model import Condition
from unmemorize.core.results import Explanation
from unmemorize.explain.tokens import Window, by_word


@method(
    "gradient",
    paper="Wen et al. 2024, section 3.3",
    cost="2 evaluations a seed and a backward pass, at the first step",
    needs=("gradients", "unconditional"),
)
@dataclass(frozen=True)
class Gradient(Window, Explainer):
    """The gradient of the magnitude at the text encoder's output, its norm summed over the tokens of a word."""

    def explain(self, subject: Subject, prompt: str, *, seeds: Sequence[int]) -> Explanation:
        """The value of every word: higher carries more."""
        model = subject.model
        with model.counted() as cost:
            tokens = self.tokens(subject, model.encode([prompt]), seeds=seeds)
        return by_word(model, prompt, tokens, pool=self.pool, evaluations=cost.forward)

    def tokens(self, subject: Subject, cond: Condition, *, seeds: Sequence[int]) -> Tensor:
        """‖∂L/∂e_i‖₂ for every token embedding e_i of one prompt, (tokens,), averaged over seeds and steps.

        L is one picture's magnitude.

        Paper: Wen et al. 2024, section 3.3.
        Differs: the gradient is of each picture's own magnitude, not of a norm over the batch, and the sampling path is
        the guided one; the public code swaps the two halves of guidance there and averages in rows that are zero.
        """
        model, total = subject.model, []
        repeated = cond.repeat(len(seeds))
        with frozen(model.denoiser):
            for t, uncond in self.visited(subject, repeated, seeds):
                embeds = repeated.embeds.detach().clone().requires_grad_()
                with torch.enable_grad():
                    value = model.predict(uncond.x, t, repeated.with_embeds(embeds)).gap(uncond)
                    (gradient,) = torch.autograd.grad(value.sum(), embeds)
                total.append(gradient.float().norm(dim=2).mean(0))
        return torch.stack(total).mean(0).cpu()
