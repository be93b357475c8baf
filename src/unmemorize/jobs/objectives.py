"""The methods of `mitigate`: their settings, and what each descends."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from unmemorize.attack.dori import Dori, dori
from unmemorize.attack.high_noise import HighNoise
from unmemorize.attack.prompt import Words
from unmemorize.core.errors import UserError
from unmemorize.core.model import Condition, DiffusionModel, TypedModel
from unmemorize.core.results import Localization
from unmemorize.core.run import Progress
from unmemorize.core.specs import MitigateSpec
from unmemorize.jobs.copies import CopyCheck
from unmemorize.jobs.cured import latents_of
from unmemorize.jobs.pairs import captions_of, neighbours
from unmemorize.localize.wanda import wanda
from unmemorize.metrics.similarity import References
from unmemorize.mitigate.adversarial import Adversarial, InnerLoop, NoAdversary
from unmemorize.mitigate.deletion import Deletion
from unmemorize.mitigate.denoising import Pairs
from unmemorize.mitigate.erase import Erase, Rounds
from unmemorize.mitigate.finetune import Finetune, Objective
from unmemorize.mitigate.neggrad import NegGrad
from unmemorize.mitigate.siss import Siss
from unmemorize.mitigate.surrogates import Sampling, Surrogates, make_surrogates
from unmemorize.mitigate.weights import Edit
from unmemorize.models.load import EMBEDDED

PRUNED = (0.1, 0.4, 0.8)  # of each weight row, by Wanda: the least that makes enough surrogates of a picture
WORD_PAIRS = 4000  # made-up captions that `erase` keeps as they are
REHEARSED = 40  # updates of the attacks that `erase` trains against


def finetune_of(spec: MitigateSpec) -> Finetune:
    """The loop's settings."""
    settling = settling_of(spec)
    return Finetune(
        updates=spec.updates,
        lr=spec.lr or (2e-4 if spec.model in EMBEDDED else 1e-5) * (2 if settling else 1),
        settling=settling,
        seed=spec.seed,
        check_every=spec.check_every or spec.updates + 1,
        lora=spec.lora or None,
        precision="bf16" if spec.low_memory else "float32",
        gradient_checkpointing=spec.low_memory,
    )


def settling_of(spec: MitigateSpec) -> int:
    """The last updates of `erase`, in which what is ordinary counts most."""
    return 2 * spec.updates // 5 if spec.method == "erase" else 0


def objective_of(
    spec: MitigateSpec,
    model: TypedModel,
    memorized_pictures: References,
    ordinary: References,
    surrogates: Callable[[], Surrogates],
) -> Objective:
    """The method as an objective over all pictures named: what its own prompt does not copy may be copied by others.

    `surrogates` is called for methods that need them.
    """
    keep = Deletion(_pairs(model, ordinary), model.encode([""]), batch=spec.batch, seed=spec.seed)
    memorized = _pairs(model, memorized_pictures)
    if spec.method == "erase":
        captions = _kept_captions(model, captions_of(ordinary), captions_of(memorized_pictures), spec.seed)
        return _erase(spec, model, memorized, keep, captions)
    if spec.method == "deletion":
        return keep
    if spec.method == "neggrad":
        return NegGrad(keep, memorized)
    if spec.method == "siss":
        return Siss(memorized, surrogates(), batch=spec.batch, seed=spec.seed)
    if spec.method == "finetune":
        return Adversarial(keep, surrogates(), NoAdversary(memorized.captions))
    how = Dori(steps=spec.inner)
    attack = InnerLoop(lambda m, latents, init, seeds: dori(m, latents, init, seeds=seeds, how=how).last, memorized)
    return Adversarial(keep, surrogates(), attack)


def _erase(spec: MitigateSpec, model: DiffusionModel, memorized: Pairs, keep: Deletion, captions: list[str]) -> Erase:
    """Attacked at high noise, which costs least; triggers are kept from a quarter, a half and the end of the way."""
    before = {name: p.detach().clone() for name, p in model.denoiser.named_parameters()}
    how = HighNoise(steps=REHEARSED)
    stages = (REHEARSED // 4, REHEARSED // 2, REHEARSED)

    def attack(model: DiffusionModel, latents: Tensor, init: Condition, seeds: Sequence[int]) -> Tensor:
        result = dori(model, latents, init, seeds=seeds, how=how, keep=stages)
        return torch.stack([result.conditions[stage].embeds for stage in stages])

    rounds = Rounds(settle_at=spec.updates - settling_of(spec), seed=spec.seed)
    return Erase(memorized, keep.ordinary.latents, model.encode(captions), keep.empty, before, attack, rounds)


def _kept_captions(model: TypedModel, ordinary: list[str], memorized: list[str], seed: int) -> list[str]:
    """The ordinary captions, pairs of words that no memorized caption has, and of all those the nearest thrice.

    What a model makes of words is a prediction like any other: it can be kept without a picture that shows it.
    """
    words = Words(model, {word for caption in memorized for word in re.findall(r"\w+", caption)}).words
    draw = random.Random(seed)
    texts = ordinary + [" ".join(draw.choices(words, k=2)) for _ in range(WORD_PAIRS)]
    near = neighbours(model, texts, memorized)
    return texts + 2 * [text for text, n in zip(texts, near, strict=True) if n]


def _pairs(model: DiffusionModel, pictures: References) -> Pairs:
    return Pairs(latents_of(model, pictures.pixels), model.encode(captions_of(pictures)))


def surrogates_of(
    spec: MitigateSpec,
    model: DiffusionModel,
    memorized: References,
    copies: CopyCheck,
    how: Sampling,
    progress: Progress,
) -> Surrogates:
    """Pictures by the model under the named edit, or pruned by Wanda as far as they need."""

    def is_copy(images: Tensor, number: int) -> list[bool]:
        return [match.verdict != "none" for match in copies.against(images, memorized[[number] * len(images)])]

    prompts = captions_of(memorized)
    blocks = (edit.applied(model) for edit in _edits(spec, model, prompts))
    return make_surrogates(model, prompts, is_copy, mitigated=blocks, count=spec.surrogates, how=how, progress=progress)


def _edits(spec: MitigateSpec, model: DiffusionModel, prompts: list[str]) -> Iterator[Edit]:
    """The named edit, or Wanda's, each stronger than the one before, and in the end one that leaves no text.

    Of a picture that Wanda does not hide the surrogates are what the model makes of nothing.
    """
    hashed = model.fingerprint
    if not spec.edit:
        for share in PRUNED:
            yield Edit.of(wanda(model, prompts, sparsity=share), hashed)
        widths = {name: layer.out_features for name, layer in model.text_projections().items()}
        every = {name: torch.ones(width, dtype=torch.bool) for name, width in widths.items()}
        yield Edit.of(Localization("all values", "channels", every, {}, (), tuple(prompts), 0), hashed)
        return
    edit = Edit.load(spec.edit)
    if edit.fingerprint != hashed:
        raise UserError(f"{spec.edit}: made for another model, or for this one in another precision: name its own")
    yield edit
