"""Erase: attack in rounds, keep every trigger that is found, and let none of them lead towards its picture."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from unmemorize.core.bounds import Count, Limit, Share
from unmemorize.core.errors import NotApplicable
from unmemorize.core.hooks import replaced
from unmemorize.core.methods import Attack, Subject, Training, method, parse
from unmemorize.core.model import Condition, DiffusionModel, Prediction, typed
from unmemorize.core.results import Pairs
from unmemorize.core.vocabulary import Words
from unmemorize.metrics.neighbours import neighbours
from unmemorize.unlearn.denoising import Noise, Rows, draw_noise, draw_rows, stream, with_dropped
from unmemorize.unlearn.finetune import Finetune, Finetuning, without_adapters
from unmemorize.unlearn.loop import Team

WORD_PAIRS = 4000  # captions of two random words, whose predictions are to stay


@method(
    "erase",
    paper="ours, after Kowalczuk et al. 2026",
    cost="200 evaluations an update, half of them with gradient, beside an attack of every picture each 12 updates",
    needs=("gradients", "pictures", "tokens"),
)
@dataclass(frozen=True)
class Erase(Finetuning):
    """Attack in rounds, keep every trigger that is found, and let none of them lead towards its picture.

    In the last two fifths of the updates what is ordinary counts most, and the learning rate falls once more.

    Attributes:
        attack: The attack that is rehearsed; triggers are taken after a quarter, a half and all of its updates.
        every: Updates between two attacks.
        ordinary: Ordinary rows of an update.
        hostile: Rows of memorized pictures of an update.
        fresh: The share of hostile rows with triggers of the last attack.
        own: The share of hostile rows with the picture's own prompt; others have earlier triggers.
        elsewhere: The share of the own prompt's rows that shows another picture, at high noise.
        margin: How much less than the empty prompt a trigger may lead to the memorized picture where that is shown, as
            a share of the distance between the two predictions.
        weight: The weight of triggers beside the ordinary rows.
        settled: The same in the last updates, when little is left and lost quality comes back.
        ceiling: The largest weight that noise gives a row.
        focus: A picture gets hostile rows in proportion to this power of what is left of it.
        memory: The weight of earlier updates in the moving average of what is left of a picture.
    """

    usual_lr: ClassVar[float] = 2e-5

    updates: Count = 960
    check_every: Limit = 100
    attack: str = "high-noise:updates=40"
    every: Count = 12
    ordinary: Count = 64
    hostile: Count = 36
    fresh: Share = 0.5
    own: Share = 0.3
    elsewhere: Share = 0.6
    margin: float = 0.4
    weight: float = 0.8
    settled: float = 0.25
    ceiling: float = 10.0
    focus: float = 3.0
    memory: float = 0.8

    @property
    def settling(self) -> int:
        """The last updates, in which what is ordinary counts most."""
        return 2 * self.updates // 5

    @property
    def finetune(self) -> Finetune:
        """The settings of fine-tuning: the learning rate falls, and at the end once more."""
        return replace(super().finetune, settling=self.settling)

    def objective(self, subject: Subject, forget: Pairs, keep: Pairs, training: Training) -> Erasing:
        """Distillation of the model as it was, except under triggers."""
        model = subject.model
        captions = self._ordinary_captions(model, list(keep.captions.texts or ()), list(forget.captions.texts or ()))
        attack: Attack = parse("attack", self.attack)
        return Erasing(forget, keep.latents, captions, model.encode([""]), self._before(model.denoiser), attack, self)

    def _before(self, denoiser: nn.Module) -> Callable[[], AbstractContextManager[None]]:
        """What makes the denoiser the one it was: its adapters are off, or its parameters have their first values."""
        if self.lora:
            return partial(without_adapters, denoiser)
        weights = {name: p.detach().clone() for name, p in denoiser.named_parameters()}
        return partial(replaced, denoiser, weights)

    def _ordinary_captions(self, model: DiffusionModel, ordinary: list[str], memorized: list[str]) -> list[str]:
        """The ordinary captions, pairs of words that no memorized caption has, and of all those the nearest thrice.

        The target of an ordinary row is a prediction, so a caption needs no picture.
        """
        words = _words(model, ordinary, _words_in(memorized))
        draw = random.Random(self.seed)
        texts = ordinary + [" ".join(draw.choices(words, k=2)) for _ in range(WORD_PAIRS)]
        is_near = neighbours(model, texts, memorized)
        return texts + 2 * list(itertools.compress(texts, is_near))


def _words_in(captions: list[str]) -> set[str]:
    return set(re.findall(r"\w+", "\n".join(captions)))


def _words(model: DiffusionModel, captions: list[str], forbidden: set[str]) -> list[str]:
    """Words that are one token each; where the text encoder has no list of such, those of the captions."""
    try:
        return Words(typed(model), forbidden).words
    except NotApplicable:
        words = _words_in(captions)
        return sorted(words - forbidden) or sorted(words)


class Erasing:
    """Distil the model as it was, except under triggers of memorized pictures, which are not to lead there.

    Written for a model that predicts ε, with ε̄ the prediction of the model as it was; others have their own output
    in its place. The target of an ordinary row is ε̄(x_t, t, y): what is ordinary cannot drift. In a row with a
    trigger y of a picture x0, d = (x_t − α x0)/σ − ε̄(x_t, t, ∅) leads from the empty prompt's prediction to the
    picture, and s = ⟨ε_θ(x_t, t, y) − ε̄(x_t, t, ∅), d⟩ / ‖d‖² is the share of it that y covers: 0 for the empty
    prompt's prediction, 1 for the picture. The row's error is ‖d‖² max(s + m, 0)², m a margin: a trigger may give
    anything that is no nearer to the picture than the empty prompt's prediction, so no other picture has to take the
    memorized one's place, and captions with similar words keep theirs. x_t is the noisy memorized picture or, under the
    prompt, also another one: trained on the memorized picture alone, the model would learn to recognise it in the
    noise, and still arrive there from other states.

    Triggers are the prompt and what short attacks on the current weights find, from prompts, from N(0, I) and from
    ordinary captions, after some of their updates and after all. None is dropped: otherwise the model would resist the
    newest triggers only, and older ones would work again. An error counts max(1, (σ/α)²) times, up to a ceiling, as an
    error of the clean latent does: what a picture becomes is decided at high noise. What is left of a picture is the
    error of its triggers' rows as a share of what it would be if they gave the picture itself; pictures of which more
    is left get more rows.

    Args:
        memorized: Pictures to erase, with their prompts.
        ordinary: Latents of ordinary pictures, (n, c, h, w).
        captions: Ordinary captions, which are to stay; they are encoded when they are used.
        empty: The empty prompt, one row.
        before: Makes blocks in which the denoiser is the one it was.
        attack: The rehearsed attack.
        settings: Settings.
    """

    def __init__(
        self,
        memorized: Pairs,
        ordinary: Tensor,
        captions: Sequence[str],
        empty: Condition,
        before: Callable[[], AbstractContextManager[None]],
        attack: Attack,
        settings: Erase = Erase(),
    ) -> None:
        self._memorized, self._ordinary, self._captions, self._empty = memorized, ordinary, captions, empty
        self._before, self._attack, self._settings = before, attack, settings
        # Triggers are taken from these numbers of updates of an attack.
        self._taken = sorted({max(attack.updates // 4, 1), max(attack.updates // 2, 1), attack.updates})
        self._triggers = memorized.captions.embeds[None]
        self._old = 1  # how many of the triggers of a picture the last attack did not find
        self._left = torch.ones(len(memorized))

    def backward(self, model: DiffusionModel, update: int, team: Team) -> dict[str, Tensor]:
        """Two evaluations a row, one by the model as it was; an attack every `every` updates."""
        settings = self._settings
        if update % settings.every == 0:
            self._rehearse(model, update, team)
        drift = self._drift(model, *self._ordinary_rows(model, update, team)).mean()
        drift.backward()
        rows, chosen = self._hostile_rows(update, team)
        latents = self._memorized.latents[rows.items]
        triggers = self._memorized.captions[rows.items].with_embeds(self._triggers[chosen, rows.items])
        x, t, margin = self._states(model, latents, rows, own=chosen == 0)
        errors, whole = self._approach(model, latents, triggers, x, t, margin)
        settled = update >= settings.updates - settings.settling
        weight = settings.settled if settled else settings.weight
        (weight * errors.mean()).backward()
        self._note(rows.items, errors.detach(), whole, team)
        return {"ordinary": drift, "triggers": errors.mean(), "left": self._left.mean().to(drift)}

    def _drift(self, model: DiffusionModel, latents: Tensor, captions: Condition, noise: Noise) -> Tensor:
        """The weighted error of every row's prediction against that of the model as it was, (n,)."""
        t = model.timestep(noise.u)
        x = model.add_noise(latents, noise.eps, t)
        before = self._as_it_was(model, x, t, captions)
        prediction = model.predict(x, t, captions)
        error = (prediction.output - before.output).float().square().mean(dim=(1, 2, 3))
        return self._weights(prediction) * error

    def _approach(
        self, model: DiffusionModel, latents: Tensor, triggers: Condition, x: Tensor, t: Tensor, margin: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Every row's error for leading towards its picture, and the error of leading all the way there, (n,) each."""
        empty = self._as_it_was(model, x, t, self._empty.repeat(len(x)))
        prediction = model.predict(x, t, triggers)
        d = (empty.output_for(latents) - empty.output).float()
        moved = (prediction.output - empty.output).float()
        length = d.square().mean(dim=(1, 2, 3))
        s = (moved * d).mean(dim=(1, 2, 3)) / length
        whole = self._weights(prediction) * length
        return whole * (s + margin).clamp(min=0).square(), whole * (1 + margin) ** 2

    def _as_it_was(self, model: DiffusionModel, x: Tensor, t: Tensor, cond: Condition) -> Prediction:
        with torch.no_grad(), self._before():
            return model.predict(x, t, cond)

    def _weights(self, prediction: Prediction) -> Tensor:
        """The weight of each row's error: in ε more at high noise, where errors of other outputs are large anyway."""
        if prediction.kind != "epsilon":
            return torch.ones(len(prediction.x), device=prediction.x.device)
        return (prediction.sigma / prediction.alpha).square().clamp(1, self._settings.ceiling).reshape(-1)

    def _note(self, items: Tensor, errors: Tensor, whole: Tensor, team: Team) -> None:
        """Follow what is left of the pictures that the rows of all processes show."""
        items = team.gather(items.to(team.device)).cpu()
        errors = team.gather(errors.to(team.device)).cpu()
        whole = team.gather(whole.to(team.device)).cpu()
        zeros = torch.zeros(len(self._left))
        error = zeros.index_add(0, items, errors)
        most = zeros.index_add(0, items, whole)
        seen = zeros.index_add(0, items, torch.ones(len(items)))
        now = torch.lerp(error / most, self._left, self._settings.memory)
        self._left = torch.where(seen > 0, now, self._left)

    def _ordinary_rows(self, model: DiffusionModel, update: int, team: Team) -> tuple[Tensor, Condition, Noise]:
        """Latents and captions of different pictures: the target is a prediction, which needs no caption to be true."""
        batch, seed = self._settings.ordinary, self._settings.seed
        rows = draw_rows(len(self._ordinary), batch, team.share(batch), update=update, name=(seed, 0))
        numbers = (rows.coins() * len(self._captions)).long().tolist()
        captions = model.encode([self._captions[number] for number in numbers])
        captions = with_dropped(captions, self._empty, rows.coins() < 0.1)
        latents = self._ordinary[rows.items]
        return latents, captions, draw_noise(latents, rows)

    def _hostile_rows(self, update: int, team: Team) -> tuple[Rows, Tensor]:
        """Rows of memorized pictures, and the number of the trigger of each."""
        batch, seed = self._settings.hostile, self._settings.seed
        rows = draw_rows(len(self._memorized), batch, team.share(batch), update=update, name=(seed, 1))
        rows = Rows(self._pictures(rows), rows.streams)
        return rows, self._chosen(rows)

    def _states(
        self, model: DiffusionModel, latents: Tensor, rows: Rows, *, own: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the denoiser is shown, its timesteps, and the margins; under own prompts another picture now and then.

        Where another picture is shown, the memorized one is far: a margin, which is a share of that, would be large.
        """
        noise = draw_noise(latents, rows)
        elsewhere = ((rows.coins() < self._settings.elsewhere) & own).to(noise.u.device)
        other = self._ordinary[(rows.coins() * len(self._ordinary)).long()]
        shown = torch.where(elsewhere[:, None, None, None], other, latents)
        t = model.timestep(torch.where(elsewhere, (1 + noise.u) / 2, noise.u))
        margin = torch.where(elsewhere, 0.0, self._settings.margin)
        return model.add_noise(shown, noise.eps, t), t, margin

    def _pictures(self, rows: Rows) -> Tensor:
        """The picture that each row shows, drawn in proportion to a power of what is left of it."""
        ends = self._left.double().pow(self._settings.focus).cumsum(0)
        return torch.searchsorted(ends, rows.coins().double() * ends[-1], right=True).clamp(max=len(ends) - 1)

    def _chosen(self, rows: Rows) -> Tensor:
        """For every row, the number of one of its picture's triggers; the first is its prompt."""
        settings = self._settings
        kind = rows.coins()
        place = rows.coins()
        # Numbers are rounded down before they are added: in float32 the sum could be rounded up to the next one.
        new = self._old + (place * (len(self._triggers) - self._old)).long()
        earlier = torch.where(kind < settings.fresh + settings.own, 0, (place * self._old).long())
        return torch.where(kind < settings.fresh, new, earlier)

    def _rehearse(self, model: DiffusionModel, update: int, team: Team) -> None:
        """Attack every picture, processes in shares, and add what the attacks give to the triggers."""
        count = len(self._memorized)
        padded = torch.arange(-(-count // team.size) * team.size) % count
        mine = padded[team.share(len(padded))]
        streams = [stream(self._settings.seed, 2, update, picture) for picture in mine.tolist()]
        inits = []
        for picture, generator in zip(mine.tolist(), streams, strict=True):
            inits.append(self._init(model, picture, generator))
        seeds = [int(torch.randint(2**62, (1,), generator=generator)) for generator in streams]
        start = self._memorized.captions[mine].with_embeds(torch.stack(inits))
        latents = self._memorized.latents[mine]
        conditions = self._attack.attack(Subject(model), latents, start, seeds=seeds, keep=self._taken).conditions
        new = torch.stack([conditions[step].embeds for step in sorted(conditions)], dim=1)
        self._old = len(self._triggers)
        self._triggers = torch.cat([self._triggers, team.gather(new)[:count].transpose(0, 1)])

    def _init(self, model: DiffusionModel, picture: int, generator: torch.Generator) -> Tensor:
        own = self._memorized.captions.embeds[picture]
        noise = torch.randn(own.shape, generator=generator).to(own)
        caption = self._captions[int(torch.randint(len(self._captions), (1,), generator=generator))]
        kind = int(torch.randint(3, (1,), generator=generator))
        if kind == 0:
            return own
        if kind == 1:
            return noise
        embeds = model.encode([caption]).embeds[0, : len(own)]
        return pad(embeds, (0, 0, 0, len(own) - len(embeds)))  # where prompts are as long as they are

    def state(self) -> dict[str, Tensor]:
        """All triggers, how many of them are old, and what is left of each picture."""
        return {"triggers": self._triggers, "old": torch.tensor(self._old), "left": self._left}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up what `state` returned."""
        self._triggers = state["triggers"].to(self._triggers)
        self._old, self._left = int(state["old"]), state["left"]
