"""DoRI: search the text-embedding space for what brings a given picture back."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unmemorize.core.batches import in_batches
from unmemorize.core.bounds import Count, Limit, Scale
from unmemorize.core.errors import UserError
from unmemorize.core.hooks import frozen
from unmemorize.core.methods import Attack, Subject, method
from unmemorize.core.model import Condition, DiffusionModel, Prediction, drawn_levels, joined
from unmemorize.core.results import Found
from unmemorize.core.sample import generators

ROWS = 64  # the largest number of rows in one evaluation of the denoiser


@method(
    "dori",
    paper="Kowalczuk et al. 2026",
    cost="8 evaluations with gradient an update and picture",
    needs=("gradients", "pictures"),
)
@dataclass(frozen=True)
class Dori(Attack):
    """The embedding under which the model denoises a picture from any noise.

    Every update draws fresh noise and noise levels and lowers the training loss, ‖ε − ε_θ(x_t, t, y)‖², by y alone,
    with Adam: without fresh noise the embedding would fit one path. Pictures are attacked together, and each with its
    own seed: what comes out does not depend on which others share the batch.

    How little of an embedding suffices says how much of a picture the model knows and how much the embedding told it:
    with `tokens` so many positions behind the first are searched, and all others are the empty prompt's.

    Paper: Kowalczuk et al. 2026, the adversarial embedding (50 updates, learning rate 0.1, batch 8); for `tokens`
    Dhanuka et al. 2025, MAGIC, whose whole conditioning is a few vectors.
    Differs: the latent is the mode of the VAE's, once; the paper does not say. A model that was trained to predict
    something else than ε has that in the loss.

    Attributes:
        updates: Updates of the embedding.
        lr: Learning rate.
        batch: Noisy versions of the picture that an update looks at.
        tokens: Token positions that are searched; 0: all of them.
    """

    updates: Count = 50
    lr: Scale = 0.1
    batch: Count = 8
    tokens: Limit = 0

    def __post_init__(self) -> None:
        if self.updates < 1 or self.lr <= 0 or self.batch < 1:
            raise ValueError("updates, lr and batch have to be above 0")

    def rate(self, done: int) -> float:
        """The learning rate after `done` updates."""
        return self.lr

    def levels(self, generator: torch.Generator) -> Tensor:
        """One update's noise levels u in (0, 1), (batch,): all but the lowest of the grid."""
        return drawn_levels(self.batch, generator, skip=1)

    def shown(self, x0: Tensor) -> Tensor:
        """The clean latents that noise is added to: the picture's own."""
        return x0

    def errors(self, prediction: Prediction, x0: Tensor, noise: Tensor) -> Tensor:
        """The error of each row, which the search lowers: (n,)."""
        return prediction.error(x0, noise)

    def attack(
        self,
        subject: Subject,
        latents: Tensor,
        start: Condition,
        *,
        seeds: Sequence[int],
        keep: Collection[int] = (),
        rows: int = ROWS,
    ) -> Found:
        """Search for every picture; mask and pooled vectors of the start stay what they are.

        Args:
            subject: The model to attack, under whatever is applied to it.
            latents: The pictures' latents, (n, c, h, w).
            start: The embeddings to start from, one row a picture.
            seeds: One a picture, for noise and noise levels.
            keep: Numbers of updates after which to keep the embeddings too, 0 for the start; the last are always kept.
            rows: The largest number of rows in one evaluation of the denoiser.

        Raises:
            UserError: There are fewer token positions than are to be searched.
        """
        model = subject.model
        start = self.narrowed(model, start)
        size = max(rows // self.batch, 1)
        steps = {*keep, self.updates}

        def search(part: slice) -> tuple[dict[int, Condition], Tensor]:
            return self._search(model, latents[part], start[part], seeds[part], steps)

        with model.counted() as cost, frozen(model.denoiser):
            searches = in_batches(model, len(latents), search, size=size, rows=self.batch)
            parts, losses = [], []
            for _, (conditions_of_part, losses_of_part) in searches:
                parts.append(conditions_of_part)
                losses.append(losses_of_part)
        conditions = {step: joined([part[step] for part in parts]) for step in parts[0]}
        return Found(conditions, torch.cat(losses, dim=1), cost.forward)

    def narrowed(self, model: DiffusionModel, start: Condition) -> Condition:
        """The start at the positions that are searched, the empty prompt at all others.

        Raises:
            UserError: There are fewer positions.
        """
        if not self.tokens:
            return start
        empty = model.encode([""]).repeat(len(start))
        free = self._free
        positions = min(empty.embeds.shape[1], start.embeds.shape[1])
        if free.stop > positions:
            raise UserError(f"tokens={self.tokens}: there are {positions - 1} positions behind the first: name fewer")
        embeds = empty.embeds.clone()
        embeds[:, free] = start.embeds[:, free].to(embeds)
        narrowed = empty.with_embeds(embeds)
        if empty.mask is None:
            return narrowed
        mask = empty.mask.clone()
        mask[:, free] = 1
        return replace(narrowed, mask=mask)

    @property
    def _free(self) -> slice:
        # The first position is the begin of the text in all encoders that have one.
        return slice(1, 1 + self.tokens) if self.tokens else slice(None)

    def _search(
        self, model: DiffusionModel, latents: Tensor, start: Condition, seeds: Sequence[int], keep: set[int]
    ) -> tuple[dict[int, Condition], Tensor]:
        """Search for pictures whose rows fit into one evaluation of the denoiser."""
        streams = generators(seeds)
        x0 = latents.repeat_interleave(self.batch, dim=0)
        y = start.embeds[:, self._free].detach().float().clone().requires_grad_()

        def embeds() -> Tensor:
            """The start's embeddings with those that are searched."""
            whole = start.embeds.detach().clone()
            whole[:, self._free] = y.to(whole.dtype)
            return whole

        rows = start.repeat(self.batch)
        optimizer = torch.optim.Adam([y], lr=self.lr)
        conditions = {0: start} if 0 in keep else {}
        losses = []
        for update in range(1, self.updates + 1):
            optimizer.param_groups[0]["lr"] = self.rate(update - 1)
            t, noise = self._draw(model, latents, streams)
            x = model.add_noise(self.shown(x0), noise, t)
            with torch.enable_grad():
                cond = rows.with_embeds(embeds().repeat_interleave(self.batch, dim=0))
                errors = self.errors(model.predict(x, t, cond), x0, noise)
                loss = errors.reshape(len(latents), self.batch).mean(dim=1)
                total = loss.sum()
            # In half precision the gradient of a mean over so many values would be rounded to zero on its way back.
            scale = latents[0].numel()
            (slope,) = torch.autograd.grad(total * scale, y)
            y.grad = slope / scale
            optimizer.step()
            losses.append(loss.detach().cpu())
            if update in keep:
                conditions[update] = start.with_embeds(embeds().detach())
        return conditions, torch.stack(losses)

    def _draw(
        self, model: DiffusionModel, latents: Tensor, streams: Sequence[torch.Generator]
    ) -> tuple[Tensor, Tensor]:
        """Timesteps and noise for every picture's rows, from the picture's own stream."""
        levels = [self.levels(g) for g in streams]
        noise = [torch.randn(self.batch, *latents.shape[1:], generator=g, dtype=torch.float32) for g in streams]
        return model.timestep(torch.cat(levels)).to(latents.device), torch.cat(noise).to(latents)
