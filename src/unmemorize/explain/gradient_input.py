"""Gradient × input: the gradient of the magnitude by what each token puts into the text encoder, times that input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unmemorize.core.errors import NotApplicable
from unmemorize.core.hooks import frozen
from unmemorize.core.methods import Explainer, Subject, method
from unmemorize.core.model import typed
from unmemorize.core.results import Explanation
from unmemorize.explain.tokens import Window, by_word


@method(
    "gradient-input",
    paper="Shrikumar et al. 2016, of the magnitude of Wen et al. 2024",
    cost="2 evaluations a seed and a backward pass through the text encoder too, at the first step",
    needs=("gradients", "unconditional", "tokens"),
)
@dataclass(frozen=True)
class GradientInput(Window, Explainer):
    """The gradient of the magnitude at the text encoder's input times that input: negative where it lowers it."""

    def explain(self, subject: Subject, prompt: str, *, seeds: Sequence[int]) -> Explanation:
        """The value of every word: higher carries more.

        Raises:
            NotApplicable: The model's text encoder gives no token ids.
        """
        with subject.model.counted() as cost:
            tokens = self.tokens(subject, prompt, seeds=seeds)
        return by_word(subject.model, prompt, tokens, pool=self.pool, evaluations=cost.forward)

    def tokens(self, subject: Subject, prompt: str, *, seeds: Sequence[int]) -> Tensor:
        """⟨x_i, ∂L/∂x_i⟩ for every token input x_i of a prompt, (tokens,), averaged over seeds and steps.

        x_i is the row of the text encoder's input table, before its position is added; L is one picture's magnitude.
        Values have a sign: where it is positive, the magnitude rises when the input is scaled up.

        Paper: Shrikumar et al. 2016 for gradient × input, as Captum's documentation cites it.
        Differs: of the magnitude (Wen et al. 2024) instead of a class score.

        Raises:
            NotApplicable: The model's text encoder gives no token ids.
        """
        model = typed(subject.model)
        cond = model.encode([prompt])
        if cond.ids is None:
            raise NotApplicable("this model's text encoder gives no token ids: there are no token inputs to explain")
        inputs = model.token_table[cond.ids]
        total = []
        with frozen(model.denoiser):
            for t, uncond in self.visited(subject, cond.repeat(len(seeds)), seeds):
                given = inputs.clone().requires_grad_()
                with torch.enable_grad():
                    rows = model.encode_tokens(cond.ids, given).repeat(len(seeds))
                    value = model.predict(uncond.x, t, rows).gap(uncond).mean()
                    (gradient,) = torch.autograd.grad(value, given)
                total.append((inputs * gradient)[0].float().sum(1))
        return torch.stack(total).mean(0).cpu()
