"""Wanda for memorization: feed-forward weights that memorized prompts use more than the empty prompt does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unmemorize.core.batches import in_batches
from unmemorize.core.bounds import Count, Draws
from unmemorize.core.errors import UserError
from unmemorize.core.hooks import observed
from unmemorize.core.methods import Localizer, Subject, method
from unmemorize.core.model import Condition, DiffusionModel, names_of
from unmemorize.core.results import Localization, PromptUnits, union
from unmemorize.core.run import Progress, quiet
from unmemorize.core.sample import Sampler, trajectory
from unmemorize.localize.reference import check_finite

CALLS = 10  # first sampling steps whose masks are joined
STEPS, GUIDANCE = 50, 7.5


@method(
    "wanda",
    paper="Chavhan et al. 2024; scores of Sun et al. 2024",
    cost="20 evaluations a prompt and seed, and as many for the empty prompt",
    needs=("unconditional",),
)
@dataclass(frozen=True)
class Wanda(Localizer):
    """Feed-forward weights that memorized prompts use more than the empty prompt does.

    At each of the first ten sampling steps, S = |W| · n, with n_j = sqrt(Σ A_ij²) the norm of input j over all tokens,
    each scaled to length 1, of both halves of guidance, all prompts and seeds. Chosen are those of the top ⌊sparsity ·
    inputs⌋ of each output row whose S is above the empty prompt's; the steps' choices are joined.

    Paper: Chavhan et al. 2024, memorization in feed-forward layers (Wanda scores: Sun et al. 2024).
    Reference implementation: ruchikachavhan/concept-prune.
    Differs: hooks are keyed by module name, not by counting calls; sampling ends after the steps that are looked at;
    the empty prompt, the same beside every prompt, is sampled once a seed and counted once a prompt.

    Attributes:
        sparsity: Share of each output row that may be chosen, 0 to 1: 0.01 in the paper, 0.1 in its stress test.
        per_prompt: Choose for every prompt by itself, and join the choices.
        seeds: Sampling runs of every prompt.
        batch: Sampling runs at a time, which changes no result; prompt by prompt those of one prompt.
    """

    sparsity: float = 0.01
    per_prompt: bool = False
    seeds: Draws = 1
    batch: Count = 16

    def find(
        self, subject: Subject, cond: Condition, *, ordinary: Condition | None = None, progress: Progress = quiet
    ) -> Localization:
        """The weights of second feed-forward layers that matter for prompts and less for the empty prompt.

        Raises:
            NotApplicable: The model has no transformer feed-forward.
            UserError: The sparsity selects nothing or is no share, or the model's weights are not finite.
        """
        model = subject.model
        layers = model.feed_forwards()
        self._require_choice(layers)
        check_finite(model.denoiser)
        weights = {name: layer.weight.detach().abs().float() for name, layer in layers.items()}
        names = names_of(cond)
        by_prompt: list[PromptUnits] = []
        with model.counted() as cost:
            base = _energies(model, model.encode([""]), range(self.seeds))
            parts = self._by_part(model, cond, progress)
            if self.per_prompt:
                for name, energies in zip(names, parts, strict=True):
                    by_prompt.append(PromptUnits(name, choose(weights, energies, base, self.sparsity), {}))
                masks = union([prompt.masks for prompt in by_prompt])
            else:
                # The empty prompt stands beside every prompt.
                repeated = {name: energy * len(cond) for name, energy in base.items()}
                masks = union([choose(weights, _summed(parts), repeated, self.sparsity)])
        return Localization(
            method=self.name,
            units="weights",
            masks=masks,
            parameters={
                "sparsity": self.sparsity,
                "calls": CALLS,
                "steps": STEPS,
                "guidance": GUIDANCE,
                "per_prompt": self.per_prompt,
            },
            seeds=tuple(range(self.seeds)),
            prompts=tuple(names),
            evaluations=cost.forward,
            per_prompt=tuple(by_prompt),
        )

    def _require_choice(self, layers: Mapping[str, nn.Linear]) -> None:
        """Refuse a sparsity that is no share, or that chooses nothing.

        Raises:
            UserError: The sparsity is not in (0, 1], or less than one weight of the longest rows.
        """
        widest = max(layer.in_features for layer in layers.values())
        if not 0 < self.sparsity <= 1 or int(self.sparsity * widest) == 0:
            raise UserError(
                f"sparsity {self.sparsity} selects nothing of rows of {widest} weights, or is no share: name 0.01 to 1"
            )

    def _by_part(self, model: DiffusionModel, cond: Condition, progress: Progress) -> Iterator[dict[str, Tensor]]:
        """The energies of each batch of prompts; `per_prompt`, of each prompt."""

        def measured(part: slice) -> dict[str, Tensor]:
            return _energies(model, cond[part], range(self.seeds))

        size = 1 if self.per_prompt else max(self.batch // self.seeds, 1)
        for part, energies in in_batches(model, len(cond), measured, size=size, rows=2 * self.seeds):
            yield energies
            progress("locate", part.stop, len(cond))


def _summed(parts: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for energies in parts:
        for name, energy in energies.items():
            total[name] = total.get(name, 0) + energy
    return total


def choose(
    weights: Mapping[str, Tensor], target: Mapping[str, Tensor], base: Mapping[str, Tensor], sparsity: float
) -> dict[str, Tensor]:
    """Masks (out, in) from |W| and from squared input norms (calls, in) of the target and of the base."""
    masks = {}
    for name, weight in weights.items():
        count = int(sparsity * weight.shape[1])
        mask = torch.zeros_like(weight, dtype=torch.bool)
        for target_norm, base_norm in zip(target[name].sqrt(), base[name].sqrt(), strict=True):
            # In double precision, as the norms are: scores that are equal for both prompts have to stay so.
            score = weight * target_norm.to(weight.device)  # where the weights wait, if parts are offloaded
            base_score = weight * base_norm.to(weight.device)
            top = torch.zeros_like(mask).scatter(1, score.topk(count, dim=1).indices, True)
            mask |= top & (score > base_score)
        masks[name] = mask.cpu()
    return masks


def _energies(model: DiffusionModel, cond: Condition, seeds: Sequence[int]) -> dict[str, Tensor]:
    """Squared norms of each layer's inputs by step, summed over tokens, halves, prompts and seeds: (calls, in)."""
    layers = model.feed_forwards()
    inputs: dict[str, list[Tensor]] = {name: [] for name in layers}

    def watch(name: str) -> Callable[[Tensor], None]:
        def add(given: Tensor) -> None:
            unit = torch.nn.functional.normalize(given.detach().float(), dim=-1)
            inputs[name].append(unit.double().square().flatten(0, -2).sum(0))

        return add

    every = list(seeds) * len(cond)
    steps = trajectory(model, cond.repeat(len(seeds)), seeds=every, sampler=Sampler(STEPS, GUIDANCE))
    with observed(model.denoiser, {name: watch(name) for name in layers}):
        for step in steps:
            if step.index + 1 == CALLS:
                break
    # A family calls a layer once a step or several times: for the halves of guidance, for text and picture.
    return {name: torch.stack(calls).unflatten(0, (CALLS, -1)).sum(1) for name, calls in inputs.items()}
