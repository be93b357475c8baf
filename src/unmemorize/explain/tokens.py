"""Which words of a prompt carry the memory: the gradient of the text-conditional magnitude by each token."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

import torch
from scipy.stats import spearmanr
from torch import Tensor

from unmemorize.core.errors import NotApplicable
from unmemorize.core.hooks import frozen
from unmemorize.core.model import Condition, DiffusionModel, Prediction
from unmemorize.core.results import Explanation
from unmemorize.core.sample import first_conditional, first_unconditional, trajectory
from unmemorize.metrics.magnitude import magnitude

POOLS: dict[str, Callable[[Tensor], Tensor]] = {"sum": torch.sum, "max": torch.amax, "mean": torch.mean}


def words_of(prompt: str) -> list[tuple[int, int]]:
    """The spans of a prompt's words: whatever stands between white space."""
    return [match.span() for match in re.finditer(r"\S+", prompt)]


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
    repeated = cond[torch.zeros(len(seeds), dtype=torch.long, device=cond.embeds.device)]
    with frozen(model.denoiser):
        for t, uncond in _visited(model, repeated, seeds, steps, window, guidance):
            embeds = repeated.embeds.detach().clone().requires_grad_()
            with torch.enable_grad():
                value = magnitude(model.predict(uncond.x, t, replace(repeated, embeds=embeds)), uncond)
                (gradient,) = torch.autograd.grad(value.sum(), embeds)
            total.append(gradient.float().norm(dim=2).mean(0))
    return torch.stack(total).mean(0).cpu()


def _visited(
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
    """What each word contributes: its tokens' significance, pooled (`sum`, `max` or `mean`).

    Words beyond the model's longest prompt count nothing. Begin, end and padding tokens are reported apart: padding can
    carry much of a memory.
    """
    before = model.evaluations
    cond = model.encode([prompt])
    tokens = token_significance(model, cond, seeds=seeds, steps=steps, window=window)
    spans, words = model.spans(prompt), words_of(prompt)
    starts = torch.tensor([start if stop > start else -1 for start, stop in spans])
    inside = [(starts >= start) & (starts < stop) for start, stop in words]
    values = tuple(float(POOLS[pool](tokens[mask])) if mask.any() else 0.0 for mask in inside)
    return Explanation(prompt, tuple(words), values, _special(tokens, starts, cond), model.evaluations - before)


def _special(tokens: Tensor, starts: Tensor, cond: Condition) -> dict[str, float]:
    mask = torch.ones(len(tokens)) if cond.mask is None else cond.mask[0].cpu()
    real, used = starts >= 0, mask.bool()
    first = torch.arange(len(tokens)) == 0
    groups = {"begin": ~real & used & first, "end": ~real & used & ~first, "padding": ~real & ~used}
    return {name: float(tokens[group].sum()) for name, group in groups.items()}


def leave_one_out(
    model: DiffusionModel, prompt: str, *, seeds: Sequence[int], steps: int = 50
) -> tuple[tuple[float, ...], int]:
    """How much the first step's magnitude falls when each word is left out, and the evaluations that took.

    A second opinion that needs no gradient: words + 1 evaluations a seed.
    """
    before = model.evaluations
    spans = words_of(prompt)
    variants = [prompt, *(" ".join((prompt[:start] + prompt[stop:]).split()) for start, stop in spans)]
    empty = first_unconditional(model, seeds=seeds, steps=steps)
    cond = first_conditional(model, model.encode(variants), empty, steps=steps)
    values = magnitude(cond, empty.repeated(len(variants))).reshape(len(variants), len(seeds)).mean(1)
    return tuple((values[0] - values[1:]).tolist()), model.evaluations - before


def rank_agreement(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation, or None where either side has fewer than two distinct values."""
    if min(len(set(first)), len(set(second))) < 2:
        return None
    return float(spearmanr(first, second).statistic)
