"""Which words of a prompt carry the memory: the gradient of the magnitude by each token input, times the input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unmemorize.core.errors import NotApplicable
from unmemorize.core.hooks import frozen
from unmemorize.core.model import TypedModel
from unmemorize.core.results import Explanation
from unmemorize.explain.tokens import by_word, visited


def token_gradient_input(
    model: TypedModel,
    prompt: str,
    *,
    seeds: Sequence[int],
    steps: int = 50,
    window: tuple[int, int] = (0, 1),
    guidance: float = 7.5,
) -> Tensor:
    """⟨x_i, ∂L/∂x_i⟩ for every token input x_i of a prompt, (tokens,), averaged over seeds and steps.

    x_i is the row of the text encoder's input table, before its position is added; L is one picture's magnitude. Values
    have a sign: where it is positive, the magnitude rises when the input is scaled up. The first step alone costs two
    evaluations a seed and a backward pass through the denoiser and the text encoder.

    Paper: Shrikumar et al. 2016 for gradient × input, as Captum's documentation cites it.
    Differs: of the magnitude (Wen et al. 2024) instead of a class score.

    Raises:
        NotApplicable: The model's text encoder gives no token ids.
    """
    cond = model.encode([prompt])
    if cond.ids is None:
        raise NotApplicable("this model's text encoder gives no token ids: there are no token inputs to explain")
    inputs = model.token_table[cond.ids]
    repeated = cond.repeat(len(seeds))
    total = []
    with frozen(model.denoiser):
        for t, uncond in visited(model, repeated, seeds, steps, window, guidance):
            given = inputs.clone().requires_grad_()
            with torch.enable_grad():
                rows = model.encode_tokens(cond.ids, given).repeat(len(seeds))
                value = model.predict(uncond.x, t, rows).gap(uncond).mean()
                (gradient,) = torch.autograd.grad(value, given)
            total.append((inputs * gradient)[0].float().sum(1))
    return torch.stack(total).mean(0).cpu()


def word_gradient_input(
    model: TypedModel,
    prompt: str,
    *,
    seeds: Sequence[int],
    steps: int = 50,
    window: tuple[int, int] = (0, 1),
    pool: str = "sum",
) -> Explanation:
    """What each word contributes: the gradient × input of its tokens, pooled (`sum`, `max` or `mean`)."""
    with model.counted() as cost:
        tokens = token_gradient_input(model, prompt, seeds=seeds, steps=steps, window=window)
    return by_word(model, prompt, tokens, pool=pool, evaluations=cost.forward)
