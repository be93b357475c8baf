"""Wanda for memorization: feed-forward weights that memorized prompts use more than the empty prompt does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unmemorize.core.batches import in_batches
from unmemorize.core.errors import UserError
from unmemorize.core.hooks import observed
from unmemorize.core.methods import Localizer, Subject, method
from unmemorize.core.model import Condition, DiffusionModel, names_of
from unmemorize.core.results import Localization, PromptUnits, union
from unmemorize.core.run import Progress, quiet
from unmemorize.core.sample import Sampler, trajectory
from unmemorize.core.specs import Count, Draws
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
        if not 0 < self.sparsity <= 1 or all(int(self.sparsity * layer.in_features) == 0 for layer in layers.values()):
            most = max(layer.in_features for layer in layers.values())
            raise UserError(
                f"sparsity {self.sparsity} selects nothing of rows of {most} weights, or is no share: name 0.01 to 1"
            )
        check_finite(model.denoiser)
        weights = {name: layer.weight.detach().abs().float() for name, layer in layers.items()}
        total: dict[str, Tensor] = {}
        by_prompt: list[PromptUnits] = []
        names = names_of(cond)

        def energies_of(part: slice) -> dict[str, Tensor]:
            return _energies(model, cond[part], range(self.seeds))

        size = 1 if self.per_prompt else max(self.batch // self.seeds, 1)
        with model.counted() as cost:
            base = _energies(model, model.encode([""]), range(self.seeds))
            for part, energies in in_batches(model, len(cond), energies_of, size=size, rows=2 * self.seeds):
                if self.per_prompt:
                    chosen = choose(weights, energies, base, self.sparsity)
                    by_prompt.append(PromptUnits(names[part.start], chosen, {}))
                for name, energy in energies.items():
                    total[name] = total.get(name, 0) + energy
                progress("locate", part.stop, len(cond))
        joint = [prompt.masks for prompt in by_prompt]
        if not self.per_prompt:
            often = {name: energy * len(cond) for name, energy in base.items()}
            joint = [choose(weights, total, often, self.sparsity)]
        return Localization(
            method=self.name,
            units="weights",
            masks=union(joint),
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


def choose(
    weights: Mapping[str, Tensor], target: Mapping[str, Tensor], base: Mapping[str, Tensor], sparsity: float
) -> dict[str, Tensor]:
    """Masks (out, in) from |W| and from squared input norms (calls, in) of the target and of the base."""
    masks = {}
    for name, weight in weights.items():
        count = int(sparsity * weight.shape[1])
        mask = torch.zeros_like(weight, dtype=torch.bool)
        for wanted, usual in zip(target[name].sqrt(), base[name].sqrt(), strict=True):
            # In double precision, as the norms are: scores that are equal for both prompts have to stay so.
            score = weight * wanted.to(weight.device)  # where the weights wait, if parts are offloaded
            top = score.topk(count, dim=1).indices
            mask |= torch.zeros_like(mask).scatter(1, top, True) & (score > weight * usual.to(weight.device))
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
