"""DoRI: search the text-embedding space for what brings a given picture back."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unmemorize.core.hooks import frozen
from unmemorize.core.model import Condition, DiffusionModel, Prediction, drawn_levels, joined
from unmemorize.core.results import Attack
from unmemorize.core.sample import generators


@dataclass(frozen=True)
class Dori:
    """The attack's settings: updates, learning rate, and noisy versions of the picture an update looks at."""

    steps: int = 50
    lr: float = 0.1
    batch: int = 8

    def rate(self, done: int) -> float:
        """The learning rate after `done` updates."""
        return self.lr

    def levels(self, generator: torch.Generator) -> Tensor:
        """One update's noise levels u in (0, 1), (batch,): all but the lowest of the grid."""
        return drawn_levels(self.batch, generator, skip=1)

    def shown(self, x0: Tensor) -> Tensor:
        """What noise is added to: the picture."""
        return x0

    def errors(self, prediction: Prediction, x0: Tensor, noise: Tensor) -> Tensor:
        """What is lowered, a row: (n,)."""
        return prediction.error(x0, noise)


def dori(
    model: DiffusionModel,
    latents: Tensor,
    init: Condition,
    *,
    seeds: Sequence[int],
    how: Dori = Dori(),
    keep: Collection[int] = (),
    rows: int = 64,
) -> Attack:
    """Find, for each picture, an embedding under which the model denoises it from any noise.

    Every update draws fresh noise and noise levels and lowers the training loss, ‖ε − ε_θ(x_t, t, y)‖², by y alone,
    with Adam: without fresh noise the embedding would fit one path. Whatever hooks and edits are active stay so.
    Pictures are attacked together, and each with its own seed: what comes out does not depend on which others share the
    batch.

    Paper: Kowalczuk et al. 2026, the adversarial embedding (50 updates, learning rate 0.1, batch 8).
    Differs: the latent is the mode of the VAE's, once; the paper does not say. A model that was trained to predict
    something else than ε has that in the loss.

    Args:
        model: The model to attack, with its edits applied.
        latents: The pictures' latents, (n, c, h, w).
        init: The embeddings to start from, one row a picture; mask and pooled vectors stay what they are.
        seeds: One a picture, for noise and noise levels.
        how: Settings.
        keep: Numbers of updates after which to keep the embeddings too, 0 for the start; the last are always kept.
        rows: The largest number of rows in one evaluation of the denoiser.

    Returns:
        The conditions by number of updates, the losses and the denoiser evaluations.
    """
    size = max(rows // how.batch, 1)
    parts = [slice(i, i + size) for i in range(0, len(latents), size)]
    with model.counted() as cost, frozen(model.denoiser):
        attacked = [_attack(model, latents[part], init[part], seeds[part], how, {*keep, how.steps}) for part in parts]
    conditions = {step: joined([kept[step] for kept, _ in attacked]) for step in attacked[0][0]}
    return Attack(conditions, torch.cat([losses for _, losses in attacked], dim=1), cost.forward)


def _attack(
    model: DiffusionModel, latents: Tensor, init: Condition, seeds: Sequence[int], how: Dori, keep: set[int]
) -> tuple[dict[int, Condition], Tensor]:
    """Pictures whose rows fit into one evaluation together."""
    streams = generators(seeds)
    x0 = latents.repeat_interleave(how.batch, dim=0)
    y = init.embeds.detach().float().clone().requires_grad_()
    rows = init.repeat(how.batch)
    optimizer = torch.optim.Adam([y], lr=how.lr)
    kept = {0: init} if 0 in keep else {}
    losses = []
    for step in range(1, how.steps + 1):
        optimizer.param_groups[0]["lr"] = how.rate(step - 1)
        t, noise = _draw(model, latents, streams, how)
        x = model.add_noise(how.shown(x0), noise, t)
        with torch.enable_grad():
            cond = rows.with_embeds(y.to(init.embeds.dtype).repeat_interleave(how.batch, dim=0))
            errors = how.errors(model.predict(x, t, cond), x0, noise)
            loss = errors.reshape(len(latents), how.batch).mean(dim=1)
            total = loss.sum()
        (y.grad,) = torch.autograd.grad(total, y)
        optimizer.step()
        losses.append(loss.detach().cpu())
        if step in keep:
            kept[step] = init.with_embeds(y.detach().to(init.embeds.dtype).clone())
    return kept, torch.stack(losses) if losses else torch.empty(0, len(latents))


def _draw(
    model: DiffusionModel, latents: Tensor, streams: Sequence[torch.Generator], how: Dori
) -> tuple[Tensor, Tensor]:
    """Timesteps and noise for every picture's rows, from the picture's own stream."""
    levels = [how.levels(g) for g in streams]
    noise = [torch.randn(how.batch, *latents.shape[1:], generator=g, dtype=torch.float32) for g in streams]
    return model.timestep(torch.cat(levels)).to(latents.device), torch.cat(noise).to(latents)
