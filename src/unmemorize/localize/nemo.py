"""NeMo: the value channels of cross-attention that make a prompt's noise predictions alike whatever the seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor

from unmemorize.core.choose import evenly
from unmemorize.core.errors import UserError
from unmemorize.core.model import Condition, DiffusionModel, Reach, encoded, names_of
from unmemorize.core.results import Localization, PromptUnits, union
from unmemorize.core.run import Progress
from unmemorize.localize.probe import MeanProbe, Probe, refine, refine_closely
from unmemorize.localize.reference import SEEDS, Reference, Start, activations, check_finite
from unmemorize.metrics.ssim import Scales, pairwise_ssim, scales_for, ssim

PAPER_THRESHOLD = 0.428  # Stable Diffusion 1.4
SLACK = 1e-3  # or rounding decides whether a channel without effect is freed, where the limit is what was just measured
ROUNDS = 8  # of the sweep tested at a time
COMPARED = 100  # ordinary prompts that a blocked one is compared with by the rule `ordinary`
QUANTILE = 0.95  # of their similarities, which a blocked prompt has to stay under

Rule = Literal["published", "ordinary"]


@dataclass(frozen=True)
class NemoSettings:
    """How to search: layers, seeds, the similarity that counts as memorized, and the sweep of z-scores.

    The sweep goes from `start` down to `minimum` in steps of `decrement`; without `refine` all that it chose is kept.
    No `threshold` stands for the calibrated one. `rule` says when a prompt is hidden (see `nemo`). `batch` is how many
    rows the denoiser is given at a time, which changes no result.
    """

    layers: Reach = "down-mid"
    seeds: tuple[int, ...] = SEEDS
    threshold: float | None = None
    start: float = 5.0
    decrement: float = 0.25
    minimum: float = 1.0
    refine: bool = True
    rule: Rule = "published"
    batch: int = 64


def nemo(
    model: DiffusionModel,
    prompts: Sequence[str] | Condition,
    reference: Reference,
    settings: NemoSettings | None = None,
    progress: Progress = lambda stage, done, total: None,
    *,
    ordinary: Sequence[str] = (),
) -> Localization:
    """Find, prompt by prompt, the value channels whose blocking makes a memorized prompt's predictions differ by seed.

    A prompt is memorized where two seeds' noise differences have an SSIM above the threshold; others get no channels.
    Channels are blocked that are unusual for the prompt, |a − μ| / σ > θ, or among the k strongest of their layer,
    with θ falling and k rising until SSIM(free, blocked) ≤ threshold at every memorized seed. Then whole layers and
    then single channels are freed again, deepest first, wherever it stays so. Where no θ suffices, the SSIM that the
    last one reached takes the threshold's place, and the prompt's fact `hidden` is 0. Embeddings may stand for prompts.
    `ordinary` prompts, up to a hundred of them, are what the rule `ordinary` compares with.

    Paper: Hintersdorf et al. 2024, "Finding NeMo".
    Reference implementation: ml-research/localizing_memorization_in_diffusion_models.
    Differs: predictions are those of the first sampling step and none is discarded; the SSIM of a pair depends on that
    pair alone; θ = `minimum` is tried, too; small latents have fewer scales. For speed, sets are tested in batches and
    at the seed that was hardest first, and what precedes a layer is computed once, which changes no result; while one
    layer's channels are freed, seeds that are below the limit by `CLOSE` before and after are taken to be below it.
    The rule `ordinary` is ours: the published threshold is of two *different* seeds, and no set of channels need reach
    it at the *same* seed. By ours a prompt is hidden where the mean over all seeds of SSIM(free, blocked) is at most
    the 95% quantile over ordinary prompts of the mean over the same seeds of SSIM(free, ordinary), the fact `limit`.

    Raises:
        NotApplicable: The model has no cross-attention in these layers.
        UserError: Fewer than two seeds, an empty sweep, weights that are not finite, another model's statistics, or the
            rule `ordinary` without ordinary prompts.
    """
    settings = settings or NemoSettings()
    if len(settings.seeds) < 2 or settings.decrement <= 0 or not 0 <= settings.minimum <= settings.start:
        raise UserError("NeMo needs two seeds or more, and a minimum z-score between 0 and the start of the sweep")
    if settings.rule == "ordinary" and not len(ordinary):
        raise UserError("NeMo's rule `ordinary` compares with ordinary prompts: name some")
    check_finite(model.denoiser)
    layers = model.text_projections(settings.layers)
    if any(reference.mean[n].shape != (m.out_features,) if n in reference.mean else True for n, m in layers.items()):
        raise UserError("the statistics of ordinary prompts are another model's: measure this one's")
    start = Start.of(model, settings.seeds)
    threshold = reference.threshold if settings.threshold is None else settings.threshold
    widths = {name: layer.out_features for name, layer in layers.items()}
    found = []
    with model.counted() as cost:
        others = _unblocked(model, ordinary, start, settings) if settings.rule == "ordinary" else None
        for i, prompt in enumerate(names_of(prompts)):
            cond = encoded(model, prompts[i : i + 1])
            free, values = start.unblocked(model, cond)[0], activations(model, cond, settings.layers)
            scales = scales_for(*free.shape[-2:])
            strength = pairwise_ssim(free, scales).amax(1).cpu()
            kept = strength.argsort(descending=True, stable=True)[: int((strength > threshold).sum())]
            facts: dict[str, float] = {"strength": float(strength.max()), "seeds": len(kept)}
            masks: dict[str, Tensor] = {}
            if len(kept):
                probe, limit = Probe(model, cond, start, free, kept, widths, settings.batch), threshold
                if others is not None:
                    probe = MeanProbe(model, cond, start, free, torch.arange(len(free)), widths, settings.batch)
                    limit = facts["limit"] = ordinary_limit(free, others, scales)
                blocked, more = search(probe, sweep(values, reference, settings), limit, refined=settings.refine)
                masks, facts = union([probe.by_name(blocked)]), facts | more
            found.append(PromptUnits(prompt, masks, facts))
            progress("locate", len(found), len(prompts))
    return _localization(found, settings, reference, threshold, start, cost.forward)


def _localization(
    found: Sequence[PromptUnits],
    settings: NemoSettings,
    reference: Reference,
    threshold: float,
    start: Start,
    evaluations: int,
) -> Localization:
    scales = scales_for(*start.x.shape[-2:])
    sweep_settings = {k: v for k, v in asdict(settings).items() if k not in ("seeds", "batch")}
    measured = {"threshold": threshold, "scales": scales.count, "window": scales.window, "ordinary": reference.prompts}
    return Localization(
        method="nemo",
        units="channels",
        masks=union([prompt.masks for prompt in found]),
        parameters=sweep_settings | measured,
        seeds=settings.seeds,
        prompts=tuple(prompt.prompt for prompt in found),
        evaluations=evaluations,
        per_prompt=tuple(found),
    )


def ordinary_limit(free: Tensor, others: Tensor, scales: Scales) -> float:
    """The 95% quantile over ordinary prompts of their mean similarity to one prompt's differences at the same seeds.

    `free` (seeds, c, h, w) are the prompt's, `others` (prompts, seeds, c, h, w) the ordinary prompts'.
    """
    means = [ssim(free, other, scales).mean() for other in others]
    return float(torch.stack(means).quantile(QUANTILE))


def _unblocked(model: DiffusionModel, ordinary: Sequence[str], start: Start, settings: NemoSettings) -> Tensor:
    """Differences of at most `COMPARED` ordinary prompts: (prompts, seeds, c, h, w)."""
    chosen = [ordinary[i] for i in evenly(len(ordinary), COMPARED)]
    at_once = max(settings.batch // len(settings.seeds), 1)
    parts = []
    for i in range(0, len(chosen), at_once):
        parts.append(start.unblocked(model, model.encode(chosen[i : i + at_once])))
    return torch.cat(parts)


def sweep(values: Mapping[str, Tensor], reference: Reference, settings: NemoSettings) -> Tensor:
    """The channels that each θ and k choose for one prompt's activations: (rounds, channels), each round once."""
    rounds = []
    for k in range(int((settings.start - settings.minimum) / settings.decrement + 1e-9) + 1):
        chosen = []
        for name, (a,) in values.items():
            mean, std = reference.mean[name].to(a), reference.std[name].to(a)
            mask = (a - mean).abs() / std.clamp(min=1e-12) > settings.start - k * settings.decrement
            mask[a.topk(min(k, len(a))).indices] = True
            chosen.append(mask.cpu())
        rounds.append(torch.cat(chosen))
    distinct: Tensor = torch.stack(rounds).unique_consecutive(dim=0)
    return distinct


def search(probe: Probe, rounds: Tensor, threshold: float, *, refined: bool = True) -> tuple[Tensor, dict[str, float]]:
    """The first round that brings the strength down to the threshold, less what it does without: (channels,), facts."""
    blocked, limit, reached = rounds[-1], threshold, None
    for some in rounds.split(ROUNDS):
        values = probe.strengths(some, threshold, expected=False)
        if values[-1] <= threshold:
            blocked, reached = some[len(values) - 1], values[-1]
            break
    hidden = reached is not None
    if reached is None:
        reached = probe.strength(blocked)
        limit = reached + SLACK
    facts = {"hidden": float(hidden), "initial": int(blocked.sum()), "initial_ssim": reached}
    if refined:
        whole = _by_layer(probe) & blocked
        blocked, reached = refine(probe, blocked, whole[whole.any(1)], limit, reached)
        for name, layer in zip(reversed(probe.widths), _by_layer(probe), strict=True):
            channels = torch.eye(len(layer), dtype=torch.bool)[layer & blocked]
            if len(channels):
                with probe.changing(name, blocked):
                    blocked, reached = refine_closely(probe, blocked, channels, limit, reached)
    return blocked, facts | {"channels": int(blocked.sum()), "ssim": reached}


def _by_layer(probe: Probe) -> Tensor:
    """The channels of each layer, deepest first: (layers, channels)."""
    layer = torch.repeat_interleave(torch.arange(len(probe.widths)), torch.tensor(list(probe.widths.values())))
    return layer == torch.arange(len(probe.widths)).flip(0)[:, None]
