"""Which words of a prompt carry the memory: the gradient of the text-conditional magnitude by each token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import torch
from scipy.stats import spearmanr
from torch import Tensor

from unmemorize.core.errors import NotApplicable
from unmemorize.core.hooks import frozen
from unmemorize.core.model import Condition, DiffusionModel, Prediction
from unmemorize.core.results import Explanation
from unmemorize.core.sample import first_conditional, first_unconditional, trajectory
from unmemorize.explain.words import occurrences, without, words_of

POOLS: dict[str, Callable[[Tensor], Tensor]] = {"sum": torch.sum, "max": torch.amax, "mean": torch.mean}


def token_significance(
    model: DiffusionModel,
    cond: Condition,
    *,
    seeds: Sequence[int],
    steps: int = 50,
    window: tuple[int, int] = (0, 1),
    guidance: float = 7.5,
) -> Tensor:
    """‖∂L/∂e_i‖₂ for every token embedding e_i of one prompt, (tokens,), averaged over seeds and steps.

    L is one picture's magnitude. The first step alone costs two evaluations a seed and a backward pass.

    Paper: Wen et al. 2024, section 3.3.
    Differs: the gradient is of each picture's own magnitude, not of a norm over the batch, and the sampling path is the
    guided one; the public code swaps the two halves of guidance there and averages in rows that are zero.
    """
    total = []
    repeated = cond.repeat(len(seeds))
    with frozen(model.denoiser):
        for t, uncond in visited(model, repeated, seeds, steps, window, guidance):
            embeds = repeated.embeds.detach().clone().requires_grad_()
            with torch.enable_grad():
                value = model.predict(uncond.x, t, repeated.with_embeds(embeds)).gap(uncond)
                (gradient,) = torch.autograd.grad(value.sum(), embeds)
            total.append(gradient.float().norm(dim=2).mean(0))
    return torch.stack(total).mean(0).cpu()


def visited(
    model: DiffusionModel,
    cond: Condition,
    seeds: Sequence[int],
    steps: int,
    window: tuple[int, int],
    guidance: float,
) -> Iterator[tuple[Tensor, Prediction]]:
    """The timesteps of the window, each with the unconditional prediction (and so the state) there."""
    if window == (0, 1):
        yield model.schedule(steps).timesteps[0], first_unconditional(model, seeds=seeds, steps=steps)
        return
    for step in islice(trajectory(model, cond, seeds=seeds, steps=steps, guidance=guidance), *window):
        if step.uncond is None:
            raise NotApplicable("word significance needs the unconditional prediction: sample with guidance above 1")
        yield step.t, step.uncond


def word_significance(
    model: DiffusionModel,
    prompt: str,
    *,
    seeds: Sequence[int],
    steps: int = 50,
    window: tuple[int, int] = (0, 1),
    pool: str = "sum",
) -> Explanation:
    """What each word contributes: its tokens' significance, pooled (`sum`, `max` or `mean`)."""
    with model.counted() as cost:
        tokens = token_significance(model, model.encode([prompt]), seeds=seeds, steps=steps, window=window)
    return by_word(model, prompt, tokens, pool=pool, evaluations=cost.forward)


def by_word(model: DiffusionModel, prompt: str, tokens: Tensor, *, pool: str, evaluations: int) -> Explanation:
    """The values of a prompt's tokens, (tokens,), pooled to those of its words.

    Words beyond the model's longest prompt count nothing. Begin, end and padding tokens are reported apart: padding can
    carry much of a memory.
    """
    cond, words = model.encode([prompt]), words_of(prompt)
    starts = torch.tensor([start if stop > start else -1 for start, stop in model.spans(prompt)])
    inside = [(starts >= start) & (starts < stop) for start, stop in words]
    values = tuple(float(POOLS[pool](tokens[mask])) if mask.any() else 0.0 for mask in inside)
    return Explanation(prompt, tuple(words), values, _special(tokens, starts, cond), evaluations)


def _special(tokens: Tensor, starts: Tensor, cond: Condition) -> dict[str, float]:
    mask = torch.ones(len(tokens)) if cond.mask is None else cond.mask[0].cpu()
    real, used = starts >= 0, mask.bool()
    first = torch.arange(len(tokens)) == 0
    groups = {"begin": ~real & used & first, "end": ~real & used & ~first, "padding": ~real & ~used}
    return {name: float(tokens[group].sum()) for name, group in groups.items()}


def leave_one_out(model: DiffusionModel, prompt: str, *, seeds: Sequence[int], steps: int = 50) -> Explanation:
    """How much the first step's magnitude falls when each word is left out, wherever the prompt says it.

    It needs no gradient: words + 1 evaluations a seed, and one for the empty prompt. Begin, end and padding tokens
    cannot be left out and have no value.
    """
    words = words_of(prompt)
    variants = [prompt]
    for place in words:
        variants.append(without(prompt, occurrences(prompt, place)))
    with model.counted() as cost:
        empty = first_unconditional(model, seeds=seeds, steps=steps)
        cond = first_conditional(model, model.encode(variants), empty, steps=steps)
    values = cond.gap(empty.repeated(len(variants))).reshape(len(variants), len(seeds)).mean(1)
    lost = tuple((values[0] - values[1:]).tolist())
    return Explanation(prompt, tuple(words), lost, {}, cost.forward)


def rank_agreement(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation, or None where either side has fewer than two distinct values."""
    if min(len(set(first)), len(set(second))) < 2:
        return None
    return float(spearmanr(first, second).statistic)
