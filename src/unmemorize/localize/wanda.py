"""Wanda for memorization: feed-forward weights that memorized prompts use more than the empty prompt does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from unmemorize.core.errors import UserError
from unmemorize.core.hooks import observed
from unmemorize.core.model import Condition, DiffusionModel, encoded, names_of
from unmemorize.core.results import Localization, PromptUnits, union
from unmemorize.core.run import Progress
from unmemorize.core.sample import trajectory
from unmemorize.localize.reference import check_finite

PRESETS = {"weak": 0.01, "strong": 0.1}  # the paper's share of each row, and the stress test of Finding DoRI
CALLS = 10  # first sampling steps whose masks are joined
STEPS, GUIDANCE = 50, 7.5


def wanda(
    model: DiffusionModel,
    prompts: Sequence[str] | Condition,
    *,
    sparsity: float = PRESETS["weak"],
    seeds: Sequence[int] = (0,),
    per_prompt: bool = False,
    batch: int = 16,
    progress: Progress = lambda stage, done, total: None,
) -> Localization:
    """Find the weights of second feed-forward layers that matter for prompts and less for the empty prompt.

    At each of the first ten sampling steps, S = |W| · n, with n_j = sqrt(Σ A_ij²) the norm of input j over all tokens,
    each scaled to length 1, of both halves of guidance, all prompts and seeds. Chosen are those of the top ⌊sparsity ·
    inputs⌋ of each output row whose S is above the empty prompt's; the steps' choices are joined.

    Args:
        model: The model.
        prompts: Memorized prompts, or embeddings in their place.
        sparsity: Share of each output row, 0 to 1.
        seeds: Seeds of every prompt's sampling run.
        per_prompt: Choose for every prompt by itself, and join the choices.
        batch: Sampling runs at a time, which changes no result.
        progress: Told how many prompts are done.

    Paper: Chavhan et al. 2024, memorization in feed-forward layers (Wanda scores: Sun et al. 2024).
    Reference implementation: ruchikachavhan/concept-prune.
    Differs: hooks are keyed by module name, not by counting calls; sampling ends after the steps that are looked at;
    the empty prompt, the same beside every prompt, is sampled once a seed and counted once a prompt.

    Raises:
        NotApplicable: The model has no transformer feed-forward.
        UserError: The sparsity selects nothing or is no share, or the model's weights are not finite.
    """
    layers = model.feed_forwards()
    if not 0 < sparsity <= 1 or all(int(sparsity * layer.in_features) == 0 for layer in layers.values()):
        most = max(layer.in_features for layer in layers.values())
        raise UserError(
            f"sparsity {sparsity} selects nothing of rows of {most} weights, or is no share: name 0.01 to 1"
        )
    check_finite(model.denoiser)
    weights = {name: layer.weight.detach().abs().float() for name, layer in layers.items()}
    names = names_of(prompts)
    total: dict[str, Tensor] = {}
    found = []
    step = max(batch // len(seeds), 1)
    with model.counted() as cost:
        base = _energies(model, [""], seeds)
        for i in range(0, len(prompts), step):
            some = prompts[i : i + step]
            energies = _energies(model, some, seeds)
            if per_prompt:
                for row, prompt in enumerate(names[i : i + step]):
                    one = {name: energy[row] for name, energy in energies.items()}
                    found.append(PromptUnits(prompt, choose(weights, one, _times(base, 1), sparsity), {}))
            total = {name: total.get(name, 0) + energy.sum(0) for name, energy in energies.items()}
            progress("locate", min(i + step, len(prompts)), len(prompts))
    joint = [p.masks for p in found] if per_prompt else [choose(weights, total, _times(base, len(prompts)), sparsity)]
    return Localization(
        method="wanda",
        units="weights",
        masks=union(joint),
        parameters={
            "sparsity": sparsity,
            "calls": CALLS,
            "steps": STEPS,
            "guidance": GUIDANCE,
            "per_prompt": per_prompt,
        },
        seeds=tuple(seeds),
        prompts=tuple(names),
        evaluations=cost.forward,
        per_prompt=tuple(found),
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
            score = weight * wanted
            top = score.topk(count, dim=1).indices
            mask |= torch.zeros_like(mask).scatter(1, top, True) & (score > weight * usual)
        masks[name] = mask.cpu()
    return masks


def _times(base: Mapping[str, Tensor], prompts: int) -> dict[str, Tensor]:
    return {name: energy[0] * prompts for name, energy in base.items()}


def _energies(model: DiffusionModel, prompts: Sequence[str] | Condition, seeds: Sequence[int]) -> dict[str, Tensor]:
    """Squared norms of each layer's inputs by prompt and step, summed over tokens, halves and seeds: (n, calls, in)."""
    layers = model.feed_forwards()
    found: dict[str, list[Tensor]] = {name: [] for name in layers}

    def watch(name: str) -> Callable[[Tensor], None]:
        def add(given: Tensor) -> None:
            unit = torch.nn.functional.normalize(given.detach().float(), dim=-1)
            rows = unit.double().square().flatten(1, -2).sum(1)  # halves of guidance, prompts within them, then seeds
            found[name].append(rows.unflatten(0, (-1, len(prompts), len(seeds))).sum((0, 2)))

        return add

    cond = encoded(model, prompts)[torch.arange(len(prompts)).repeat_interleave(len(seeds))]
    steps = trajectory(model, cond, seeds=list(seeds) * len(prompts), steps=STEPS, guidance=GUIDANCE)
    with observed(model.denoiser, {name: watch(name) for name in layers}):
        for step in steps:
            if step.index + 1 == CALLS:
                break
    # Some families guide in one call a step, some in two.
    return {name: torch.stack(calls, dim=1).unflatten(1, (CALLS, -1)).sum(2) for name, calls in found.items()}
