"""The planted model under changes of its weights: copies of memorized prompts, and what ordinary pictures keep."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from common import TESTBED, are_copies, each_at, match_any, match_own, pictures, planted, rate_of
from harness import Row, show
from torch import Tensor

from unmemorize.core.choose import evenly
from unmemorize.core.methods import Mitigation, Subject
from unmemorize.core.model import DiffusionModel
from unmemorize.localize.reference import SEEDS, Reference, Start, cache_folder, cached_reference
from unmemorize.metrics.ssim import pairwise_ssim, scales_for, ssim
from unmemorize.models.load import load
from unmemorize.testbed.alignment import Alignment

FIRST_SEED = 100  # of pictures: no search looks at it
KINDS = ("verbatim", "repeat", "template", "word")  # in this order, as many prompts as asked for
CANDIDATES = 40  # ordinary prompts of which the first that NeMo's threshold calls memorized are aimed at


@dataclass(frozen=True)
class Bench:
    """What every change is measured with; `aimed` are the ordinary prompts of a control."""

    model: DiffusionModel
    memorized: list[str]
    ordinary: list[str]
    aimed: list[str]
    usual: Reference
    seeds: tuple[int, ...]
    align: Alignment

    def pictures(self, prompts: Sequence[str], edits: Sequence[Mitigation] = ()) -> Tensor:
        """Pictures (prompts · seeds, 3, h, w); prompt i is generated under edit i, in turn."""
        parts = []
        each = 16 if len(edits) < 2 else 1
        for i in range(0, len(prompts), each):
            texts, seeds = each_at(prompts[i : i + each], self.seeds)
            with edits[i % len(edits)].applied(Subject(self.model)) if edits else nullcontext():
                parts.append(pictures(self.model, texts, seeds, 16 * len(self.seeds)))
        return torch.cat(parts)

    def copies(self, edits: Sequence[Mitigation] = ()) -> Row:
        """Memorized prompts: rates of copies of the own and of any picture, and the mean ratio to the own picture."""
        prompts, _ = each_at(self.memorized, self.seeds)
        images = self.pictures(self.memorized, edits)
        own, nearest = match_own(images, prompts), match_any(images)
        rate, of_any = (rate_of(are_copies(matches), len(self.seeds)) for matches in (own, nearest))
        return {"rate": rate, "any": of_any, "ratio": sum(match.value for match in own) / len(own)}

    def quality(self, free: Tensor, edits: Sequence[Mitigation] = ()) -> Row:
        """Ordinary prompts: SSIM to the unchanged model's pictures of the same seeds, and alignment."""
        prompts, _ = each_at(self.ordinary, self.seeds)
        images = self.pictures(self.ordinary, edits) if edits else free
        alike = ssim(free, images, scales_for(*free.shape[-2:])).mean()
        return {"quality": float(alike), "alignment": self.align(images, prompts).mean().item()}


def bench_of(prompts: int = 18, ordinary: int = 24, seeds: int = 2) -> Bench:
    """The planted model with so many memorized and ordinary prompts, and pictures a prompt."""
    model, everyone = load("testbed-ladder"), TESTBED.ordinary()
    usual = cached_reference(model, model.encode(everyone), cache_folder())
    memorable = sorted(planted(lambda p: p.memorable), key=lambda p: (KINDS.index(p.kind), -p.copies, p.id))
    step = max(len(planted(lambda p: True)) // ordinary // 2, 1)
    judged = everyone[::step][:ordinary]
    others = [prompt for prompt in everyone if prompt not in judged]
    candidates = [others[i] for i in evenly(len(others), CANDIDATES)]
    return Bench(
        model=model,
        memorized=[p.text for p in memorable][:prompts],
        ordinary=judged,
        aimed=alike_between_seeds(model, candidates, usual.threshold)[:prompts],
        usual=usual,
        seeds=tuple(range(FIRST_SEED, FIRST_SEED + seeds)),
        align=Alignment(model),
    )


def alike_between_seeds(model: DiffusionModel, prompts: Sequence[str], threshold: float) -> list[str]:
    """The prompts that NeMo's threshold calls memorized: a search selects channels for these alone."""
    start = Start.of(model, SEEDS)
    chosen = []
    for prompt in prompts:
        differences = start.unblocked(model, model.encode([prompt]))[0]
        if pairwise_ssim(differences, scales_for(*differences.shape[-2:])).max() > threshold:
            chosen.append(prompt)
    return chosen


def rates(row: Row) -> str:
    """The rate of copies of own pictures, and that of any picture's where it is another."""
    if row["any"] == row["rate"]:
        return show(row["rate"], ".3f")
    return f"{show(row['rate'], '.3f')} (any picture: {row['any'][0]:.3f})"
