"""Adversarial fine-tuning: embeddings that an attack finds for memorized pictures learn to give other pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from unmemorize.core.bounds import Limit
from unmemorize.core.methods import Attack, Subject, Training, method, parse
from unmemorize.core.model import Condition, DiffusionModel
from unmemorize.core.results import Pairs, Surrogates
from unmemorize.unlearn.deletion import Ordinary, WithOrdinary
from unmemorize.unlearn.denoising import Rows, denoising_errors, draw_noise, draw_rows
from unmemorize.unlearn.finetune import Stateless
from unmemorize.unlearn.loop import Team
from unmemorize.unlearn.surrogates import draw_surrogates


class Adversary(Protocol):
    """Gives the conditions under which an update shows surrogates in the place of memorized pictures."""

    def conditions(self, model: DiffusionModel, rows: Rows) -> Condition:
        """One condition for each of this process's rows, whose items are numbers of memorized pictures."""
        ...


@dataclass(frozen=True)
class NoAdversary:
    """The prompts themselves: fine-tuning on surrogates as if nobody attacked."""

    own: Condition

    def conditions(self, model: DiffusionModel, rows: Rows) -> Condition:
        """The encoded prompts of the rows' pictures."""
        return self.own[rows.items]


@dataclass(frozen=True)
class InnerLoop:
    """The attack on the current weights, before every update.

    An attack starts from the prompt's embedding or, for a share `random` of the rows, from N(0, 1).

    Paper: Kowalczuk et al. 2026: the attack runs before each fine-tuning step, on the current weights.
    Differs: the paper does not say where attacks in training start; half and half is our choice.
    """

    attack: Attack
    memorized: Pairs
    random: float = 0.5

    def conditions(self, model: DiffusionModel, rows: Rows) -> Condition:
        """What the attack finds for the rows' pictures."""
        own = self.memorized.captions[rows.items]
        inits = []
        for embeds, generator in zip(own.embeds, rows.streams, strict=True):
            noise = torch.randn(embeds.shape, generator=generator).to(embeds)
            inits.append(noise if torch.rand(1, generator=generator) < self.random else embeds)
        seeds = [int(torch.randint(2**62, (1,), generator=generator)) for generator in rows.streams]
        start, latents = own.with_embeds(torch.stack(inits)), self.memorized.latents[rows.items]
        return self.attack.attack(Subject(model), latents, start, seeds=seeds).last


@dataclass(frozen=True)
class Replacing(Stateless):
    """The loss of ordinary pairs plus that of surrogates under the adversary's embeddings, one to one.

    Paper: Kowalczuk et al. 2026, adversarial fine-tuning: L = L_DM + L_Adv with
    L_Adv = ‖ε − ε_θ(x̃_t, t, y_adv)‖², where y_adv is a constant.
    Differs: as many surrogate rows as ordinary ones; the paper gives no batch sizes.

    Args:
        keep: Ordinary pairs and their rows.
        surrogates: Other pictures of the memorized prompts.
        adversary: Where the embeddings come from.
    """

    keep: Ordinary
    surrogates: Surrogates
    adversary: Adversary

    def backward(self, model: DiffusionModel, update: int, team: Team) -> dict[str, Tensor]:
        """Two evaluations, one an ordinary row, one a surrogate, beside what the adversary needs."""
        keep, count = self.keep, self.surrogates.pictures
        rows = draw_rows(count, keep.batch, team.share(keep.batch), update=update, name=(keep.seed, 1))
        shown = draw_surrogates(self.surrogates, rows)
        noise = draw_noise(shown, rows)
        hostile = self.adversary.conditions(model, rows)
        replaced = denoising_errors(model, shown, hostile, noise).mean()
        replaced.backward()
        ordinary = keep.loss(model, update, team)
        ordinary.backward()
        return {"ordinary": ordinary, "surrogates": replaced}


@method(
    "finetune",
    paper="a baseline of Kowalczuk et al. 2026",
    cost="16 evaluations with gradient an update, beside surrogates",
    needs=("gradients", "pictures"),
)
@dataclass(frozen=True)
class OnSurrogates(WithOrdinary):
    """Fine-tune memorized prompts on other pictures, as if nobody attacked."""

    def objective(self, subject: Subject, forget: Pairs, keep: Pairs, training: Training) -> Replacing:
        """The loss of ordinary pairs plus that of surrogates under the prompts themselves."""
        adversary = NoAdversary(forget.captions)
        return Replacing(self.ordinary_half(subject, keep), training.surrogates(), adversary)


@method(
    "adversarial-finetune",
    paper="Kowalczuk et al. 2026",
    cost="16 evaluations with gradient an update, beside surrogates and 8 for every update of the attack before it",
    needs=("gradients", "pictures"),
)
@dataclass(frozen=True)
class Adversarial(WithOrdinary):
    """Train embeddings that an attack finds for a memorized picture to give other pictures.

    Attributes:
        attack: The attack on the current weights, before every update.
    """

    check_every: Limit = 100
    attack: str = "dori"

    def objective(self, subject: Subject, forget: Pairs, keep: Pairs, training: Training) -> Replacing:
        """The loss of ordinary pairs plus that of surrogates under what the attack finds."""
        adversary = InnerLoop(parse("attack", self.attack), forget)
        return Replacing(self.ordinary_half(subject, keep), training.surrogates(), adversary)
