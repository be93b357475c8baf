"""NeMo: the value channels of cross-attention that make a prompt's noise predictions alike whatever the seed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from unmemorize.core.bounds import Count, Draws
from unmemorize.core.choose import evenly
from unmemorize.core.errors import UserError
from unmemorize.core.methods import Localizer, Subject, method
from unmemorize.core.model import Condition, DiffusionModel, Reach, names_of
from unmemorize.core.results import Localization, PromptUnits, union
from unmemorize.core.run import Progress, quiet
from unmemorize.localize.probe import MeanProbe, Probe, refine, refine_closely
from unmemorize.localize.reference import (
    SEEDS,
    Reference,
    Start,
    activations,
    cache_folder,
    cached_reference,
    check_finite,
)
from unmemorize.metrics.ssim import Scales, pairwise_ssim, scales_for, ssim

PAPER_THRESHOLD = 0.428  # of the paper, for
PAPER_MODEL = "CompVis/stable-diffusion-v1-4"
SLACK = 1e-3  # or rounding decides whether a channel without effect is freed, where the limit is what was just measured
ROUNDS = 8  # of the sweep tested at a time
SWEEP = 10_000  # steps of the sweep, at most
COMPARED = 100  # ordinary prompts that a blocked one is compared with by the rule `ordinary`
QUANTILE = 0.95  # of their similarities, which a blocked prompt has to stay under

Rule = Literal["published", "ordinary"]


@method(
    "nemo",
    paper='Hintersdorf et al. 2024, "Finding NeMo"',
    cost="40 evaluations a prompt without refining, 800 and more with it; 10 for every ordinary prompt, once a model",
    needs=("ordinary",),
)
@dataclass(frozen=True)
class Nemo(Localizer):
    """The value channels of cross-attention whose blocking makes a memorized prompt's predictions differ by seed.

    A prompt is memorized where two seeds' noise differences have an SSIM above the threshold; others get no channels.
    Channels are blocked that are unusual for the prompt, |a − μ| / σ > θ, or among the k strongest of their layer,
    with θ falling and k rising until SSIM(free, blocked) ≤ threshold at every memorized seed. Then whole layers and
    then single channels are freed again, deepest first, wherever it stays so. Where no θ suffices, the SSIM that the
    last one reached takes the threshold's place, and the prompt's fact `hidden` is 0. Embeddings may stand for prompts.

    Paper: Hintersdorf et al. 2024, "Finding NeMo".
    Reference implementation: ml-research/localizing_memorization_in_diffusion_models.
    Differs: predictions are those of the first sampling step and none is discarded; the SSIM of a pair depends on that
    pair alone; θ = `minimum` is tried, too; small latents have fewer scales. For speed, sets are tested in batches and
    at the seed that was hardest first, and what precedes a layer is computed once, which changes no result; while one
    layer's channels are freed, seeds that are below the limit by `CLOSE` before and after are taken to be below it.
    The rule `ordinary` is ours: the published threshold is of two *different* seeds, and no set of channels need reach
    it at the *same* seed. By ours a prompt is hidden where the mean over all seeds of SSIM(free, blocked) is at most
    the 95% quantile over ordinary prompts of the mean over the same seeds of SSIM(free, ordinary), the fact `limit`.

    Attributes:
        layers: The cross-attention layers to look at: down-mid, as in the paper, or all.
        seeds: Seeds at which predictions are compared, 2 or more.
        threshold: The SSIM above which two seeds are alike; measured on ordinary prompts by default.
        start: The z-score that the sweep starts from.
        decrement: By how much it falls each time.
        minimum: Where it ends.
        refine: Free what the channels do without; without it all that the sweep chose is kept.
        rule: Hidden by the published threshold, or as ordinary prompts are.
        batch: Rows of the denoiser at a time, which changes no result.
        cache: Folder for the statistics of ordinary prompts; the user's cache folder by default.
        reference: These statistics, where they are at hand.
    """

    layers: Reach = "down-mid"
    seeds: Draws = len(SEEDS)  # noqa: RUF009  (of a constant)
    threshold: float | None = None
    start: float = 5.0
    decrement: float = 0.25
    minimum: float = 1.0
    refine: bool = True
    rule: Rule = "published"
    batch: Count = 64
    cache: str = ""
    reference: Reference | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.seeds < 2 or self.decrement <= 0 or not 0 <= self.minimum <= self.start:
            raise UserError("NeMo needs two seeds or more, and a minimum z-score between 0 and the start of the sweep")
        if self.start - self.minimum > SWEEP * self.decrement:
            raise UserError(f"nemo: the sweep takes over {SWEEP} steps: name a larger decrement, or a lower start")
        if self.cache and os.path.exists(self.cache) and not os.path.isdir(self.cache):
            raise UserError(f"nemo: cache={self.cache}: it is no folder: name a folder, or leave it out")

    def find(
        self, subject: Subject, cond: Condition, *, ordinary: Condition | None = None, progress: Progress = quiet
    ) -> Localization:
        """The channels, prompt by prompt; up to a hundred ordinary prompts are what the rule `ordinary` compares with.

        Raises:
            NotApplicable: The model has no cross-attention in these layers.
            UserError: Weights that are not finite, another model's statistics, or no ordinary prompts.
        """
        model = subject.model
        check_finite(model.denoiser)
        layers = self.projections(model)
        statistics = self._statistics(model, ordinary, progress)
        for name, layer in layers.items():
            if name not in statistics.mean or statistics.mean[name].shape != (layer.out_features,):
                raise UserError("the statistics of ordinary prompts are another model's: measure this one's")
        start = Start.of(model, range(self.seeds))
        threshold = self._threshold(model, statistics)
        by_prompt = []
        with model.counted() as cost:
            compared = self._unblocked(model, ordinary, start) if self.rule == "ordinary" else None
            for i, prompt in enumerate(names_of(cond)):
                by_prompt.append(self._of_prompt(model, prompt, cond[[i]], statistics, threshold, start, compared))
                progress("locate", len(by_prompt), len(cond))
        return self._localization(by_prompt, statistics, threshold, start, cost.forward)

    def _statistics(self, model: DiffusionModel, ordinary: Condition | None, progress: Progress) -> Reference:
        if self.reference is not None:
            return self.reference
        if ordinary is None or not len(ordinary):
            raise UserError("NeMo compares with ordinary prompts: name a file of captions that are not memorized")
        folder = Path(self.cache) if self.cache else cache_folder()
        return cached_reference(model, ordinary, folder, progress, self.activations, self.name)

    def projections(self, model: DiffusionModel) -> Mapping[str, nn.Linear]:
        """The layers whose channels are searched, by module name, first executed first.

        Raises:
            NotApplicable: The model has none.
        """
        return model.text_projections(self.layers)

    def activations(self, model: DiffusionModel, cond: Condition) -> dict[str, Tensor]:
        """Mean of |value| over all tokens of every channel of every layer, searched or not: (prompts, width)."""
        return activations(model, cond)

    def _threshold(self, model: DiffusionModel, statistics: Reference) -> float:
        if self.threshold is not None:
            return self.threshold
        return PAPER_THRESHOLD if model.name == PAPER_MODEL else statistics.threshold

    def _of_prompt(
        self,
        model: DiffusionModel,
        prompt: str,
        cond: Condition,
        statistics: Reference,
        threshold: float,
        start: Start,
        compared: Tensor | None,
    ) -> PromptUnits:
        widths = {name: layer.out_features for name, layer in self.projections(model).items()}
        measured = self.activations(model, cond)
        values = {name: measured[name] for name in widths}
        free = start.unblocked(model, cond)[0]
        scales = scales_for(*free.shape[-2:])
        strength = pairwise_ssim(free, scales).amax(1).cpu()
        memorized = strength.argsort(descending=True, stable=True)[: int((strength > threshold).sum())]
        facts: dict[str, float] = {"strength": float(strength.max()), "seeds": len(memorized)}
        if not len(memorized):
            return PromptUnits(prompt, {}, facts)
        probe = Probe(model, cond, start, free, memorized, widths, self.batch)
        limit = threshold
        if compared is not None:  # by the rule `ordinary`
            probe = MeanProbe(model, cond, start, free, torch.arange(len(free)), widths, self.batch)
            limit = facts["limit"] = ordinary_limit(free, compared, scales)
        blocked, outcome = search(probe, self.sweep(values, statistics), limit, refined=self.refine)
        return PromptUnits(prompt, union([probe.by_name(blocked)]), facts | outcome)

    def _unblocked(self, model: DiffusionModel, ordinary: Condition | None, start: Start) -> Tensor:
        """Differences of at most `COMPARED` ordinary prompts: (prompts, seeds, c, h, w)."""
        if ordinary is None or not len(ordinary):
            raise UserError("NeMo's rule `ordinary` compares with ordinary prompts: name some")
        chosen = ordinary[evenly(len(ordinary), COMPARED)]
        at_once = max(self.batch // self.seeds, 1)
        parts = []
        for i in range(0, len(chosen), at_once):
            parts.append(start.unblocked(model, chosen[i : i + at_once]))
        return torch.cat(parts)

    def sweep(self, values: Mapping[str, Tensor], statistics: Reference) -> Tensor:
        """The channels that each θ and k choose for one prompt's activations: (rounds, channels), each round once."""
        rounds = []
        for k in range(int((self.start - self.minimum) / self.decrement + 1e-9) + 1):
            chosen = []
            for name, (a,) in values.items():
                mean, std = statistics.mean[name].to(a), statistics.std[name].to(a)
                mask = (a - mean).abs() / std.clamp(min=1e-12) > self.start - k * self.decrement
                mask[a.topk(min(k, len(a))).indices] = True
                chosen.append(mask.cpu())
            rounds.append(torch.cat(chosen))
        distinct: Tensor = torch.stack(rounds).unique_consecutive(dim=0)
        return distinct

    def _localization(
        self, by_prompt: Sequence[PromptUnits], statistics: Reference, threshold: float, start: Start, evaluations: int
    ) -> Localization:
        scales = scales_for(*start.x.shape[-2:])
        settings = ("layers", "start", "decrement", "minimum", "refine", "rule")
        searched = {name: getattr(self, name) for name in settings}
        measured = {"threshold": threshold, "scales": scales.count, "window": scales.window}
        measured |= {"ordinary": statistics.prompts}
        return Localization(
            method=self.name,
            units="channels",
            masks=union([prompt.masks for prompt in by_prompt]),
            parameters=searched | measured,
            seeds=tuple(range(self.seeds)),
            prompts=tuple(prompt.prompt for prompt in by_prompt),
            evaluations=evaluations,
            per_prompt=tuple(by_prompt),
        )


def ordinary_limit(free: Tensor, compared: Tensor, scales: Scales) -> float:
    """The 95% quantile over ordinary prompts of their mean similarity to one prompt's differences at the same seeds.

    `free` (seeds, c, h, w) are the prompt's, `compared` (prompts, seeds, c, h, w) the ordinary prompts'.
    """
    means = [ssim(free, other, scales).mean() for other in compared]
    return float(torch.stack(means).quantile(QUANTILE))


def search(probe: Probe, rounds: Tensor, threshold: float, *, refined: bool = True) -> tuple[Tensor, dict[str, float]]:
    """The first round that brings the strength down to the threshold, less what it does without: (channels,), facts."""
    blocked, limit, reached = rounds[-1], threshold, None
    for sets in rounds.split(ROUNDS):
        values = probe.strengths(sets, threshold, expected=False)
        if values[-1] <= threshold:
            blocked, reached = sets[len(values) - 1], values[-1]
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
