"""Move a prompt's embedding, at the first sampling step, until the text says no more than an ordinary prompt does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unmemorize.core.hooks import frozen
from unmemorize.core.model import Condition, DiffusionModel, Prediction
from unmemorize.core.sample import first_unconditional, generate
from unmemorize.metrics.calibrate import conformal_threshold

# The target is a score that few ordinary prompts stay under: brought down to their median, most copies are still made.
LOW_SCORE = 0.05


@dataclass(frozen=True)
class Limits:
    """The magnitude above which a picture counts as memorized, and the one it is then brought under."""

    threshold: float
    target: float


def limits_of(ordinary: Sequence[float], *, false_alarms: float = 0.01) -> Limits:
    """Limits from the magnitudes of ordinary prompts, of which this share may be acted on.

    Raises:
        NotApplicable: There are too few for so small a share.
    """
    threshold = conformal_threshold(ordinary, false_alarms=false_alarms)
    return Limits(threshold, float(np.quantile(ordinary, LOW_SCORE)))


@dataclass(frozen=True)
class Lowered:
    """Changed embeddings (n, tokens, width), and the magnitudes before, between and after the updates, (≥ 1, n)."""

    embeds: Tensor
    trace: Tensor

    @property
    def before(self) -> Tensor:
        """Every picture's magnitude under the prompt, (n,)."""
        return self.trace[0]

    @property
    def after(self) -> Tensor:
        """Every picture's magnitude under its changed embedding, (n,)."""
        return self.trace[-1]


def lower_magnitude(
    predict: Callable[[Tensor], Prediction],
    embeds: Tensor,
    empty: Prediction,
    *,
    target: float,
    lr: float = 0.05,
    iterations: int = 10,
) -> Lowered:
    """Descend each picture's magnitude until it is at most `target`, with AdamW on its own copy of the embedding.

    The begin token's embedding stays what it is. Every row is optimised by itself: the result does not depend on how
    many pictures are made together.

    Paper: Wen et al. 2024, section 4.1 (learning rate 0.05, at most 10 updates).
    Differs: the target is per picture. The public code compares one norm over the batch with it: its target 3 for four
    pictures is 1.5 here.

    Args:
        predict: The conditional prediction at the first step for embeddings of this shape.
        embeds: One row a picture, (n, tokens, width).
        empty: The unconditional prediction there, one row a picture.
        target: The magnitude to get under.
        lr: Learning rate.
        iterations: The largest number of updates.
    """
    moving = embeds.detach().float().clone().requires_grad_()
    optimizer = torch.optim.AdamW([moving], lr=lr)
    kept = embeds.detach().clone()
    active = torch.ones(len(embeds), dtype=torch.bool)
    trace: list[Tensor] = []
    while True:
        with torch.enable_grad():
            value = predict(moving.to(embeds.dtype)).gap(empty)
            total = value.sum()
        trace.append(torch.where(active, value.detach().cpu(), trace[-1] if trace else torch.nan))
        if len(trace) > 1:  # a row that needs no update goes out in the very bits that came in
            kept[active] = moving.detach()[active].to(kept)
        active &= trace[-1] > target
        if len(trace) > iterations or not active.any():
            return Lowered(kept, torch.stack(trace))
        (moving.grad,) = torch.autograd.grad(total, moving)
        optimizer.step()
        with torch.no_grad():
            moving[:, 0] = embeds[:, 0]  # from gradient and weight decay alike


def lower_at_start(
    model: DiffusionModel,
    cond: Condition,
    *,
    seeds: Sequence[int],
    target: float,
    steps: int = 50,
    lr: float = 0.05,
    iterations: int = 10,
) -> tuple[Condition, Lowered]:
    """`lower_magnitude` for one row of `cond` and one seed a picture: a condition to sample from with those seeds."""
    empty = first_unconditional(model, seeds=seeds, steps=steps)
    t = model.schedule(steps).timesteps[0]

    def predict(embeds: Tensor) -> Prediction:
        return model.predict(empty.x, t, cond.with_embeds(embeds))

    with frozen(model.denoiser):
        lowered = lower_magnitude(predict, cond.embeds, empty, target=target, lr=lr, iterations=iterations)
    return cond.with_embeds(lowered.embeds), lowered


def generate_guarded(
    model: DiffusionModel,
    cond: Condition,
    *,
    seeds: Sequence[int],
    steps: int = 50,
    guidance: float | None = 7.5,
    limits: Limits,
    iterations: int = 10,
) -> Tensor:
    """`generate`, but embeddings whose magnitude at the first step is over the threshold are lowered to the target.

    It makes the pictures that a guarded pipeline makes, of any embeddings, also of ones that no prompt has.
    """
    empty, t = first_unconditional(model, seeds=seeds, steps=steps), model.schedule(steps).timesteps[0]
    with torch.no_grad():
        over = (model.predict(empty.x, t, cond).gap(empty) > limits.threshold).nonzero()[:, 0]
    if len(over):
        chosen = [seeds[i] for i in over.tolist()]
        changed, _ = lower_at_start(
            model, cond[over], seeds=chosen, target=limits.target, steps=steps, iterations=iterations
        )
        cond = cond.with_embeds(cond.embeds.index_copy(0, over, changed.embeds))
    return generate(model, cond, seeds=seeds, steps=steps, guidance=guidance)
