"""Prompt search: words that anybody can type, and that bring a given picture back."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unmemorize.core.errors import NotApplicable, UserError
from unmemorize.core.hooks import frozen
from unmemorize.core.model import Condition, TypedModel, drawn_levels
from unmemorize.core.sample import generators

PIECE = 1024  # words encoded at once: a large vocabulary's embeddings together fill a machine


@dataclass(frozen=True)
class PromptSearch:
    """Settings: rounds of swaps, noisy versions of the picture that a round looks at, swaps tried, and where from.

    A swap is drawn among the `top` words that the gradient likes best at each position. Noise levels are drawn from the
    noisiest share `noisy`.
    """

    rounds: int = 20
    batch: int = 4
    tried: int = 24
    top: int = 64
    noisy: float = 0.4


@dataclass(frozen=True)
class Typed:
    """A prompt found, the loss before each round's swap, and the denoiser evaluations spent."""

    prompt: str
    losses: tuple[float, ...]
    evaluations: int


class Words:
    """The words that a model reads as one token each, less forbidden ones."""

    def __init__(self, model: TypedModel, forbidden: Collection[str] = ()) -> None:
        banned = {word.lower() for word in forbidden}
        every = [word for word in model.vocabulary if word.lower() not in banned]
        starts = range(0, max(len(every), 1), PIECE)
        tokens = torch.cat([_single_tokens(model, every[i : i + PIECE] or [""]) for i in starts])
        single = (tokens >= 0).nonzero()[:, 0]
        if not len(single):
            raise UserError("no word is left to type: forbid fewer words")
        self.words, self.ids = [every[i] for i in single.tolist()], tokens[single]


def _single_tokens(model: TypedModel, words: Sequence[str]) -> Tensor:
    """The token of each word, -1 where it is not one alone."""
    cond = model.encode(words)
    if cond.ids is None or cond.mask is None:
        raise NotApplicable("this model's text encoder gives no token ids: there is no prompt to search for")
    return torch.where(cond.mask.sum(1) == 3, cond.ids[:, 1], -1)  # begin, the word, end


def nearest_words(model: TypedModel, embed: Tensor, count: int, *, forbidden: Collection[str] = ()) -> str:
    """The words whose own encodings, less the empty prompt's, point most to where `embed` (tokens, width) lies."""
    words, empty = Words(model, forbidden).words, model.encode([""]).embeds.flatten()
    meant = (embed.flatten() - empty)[None]
    parts = (model.encode(words[i : i + PIECE]).embeds.flatten(1) for i in range(0, len(words), PIECE))
    closeness = torch.cat([torch.cosine_similarity(part - empty, meant) for part in parts])
    return " ".join(words[i] for i in closeness.topk(count).indices.tolist())


def prompt_search(
    model: TypedModel,
    latent: Tensor,
    start: str,
    *,
    seed: int,
    how: PromptSearch = PromptSearch(),
    forbidden: Collection[str] = (),
    rows: int = 64,
) -> Typed:
    """Swap the words of a prompt, one a round, for ones under which the model denoises the picture better.

    A round draws fresh noise and timesteps. The gradient of DoRI's loss with respect to what each word puts into the
    text encoder says which swaps promise most; a random few of those are evaluated on the same noise, and the best is
    kept if it beats the prompt as it is. Words are ones that are a token of their own, so that the prompt, typed, is
    read as the very tokens that were found.

    Paper: Ebrahimi et al. 2018 (HotFlip) for the linear estimate; Zou et al. 2023, algorithm 1 (GCG), for the search.
    Differs: the loss is DoRI's, over fresh noise; the rest of the token positions stay padding.

    Args:
        model: The model to attack, with its edits applied.
        latent: The picture's latent, (1, c, h, w).
        start: Words to begin with; their number stays. Each has to be one of the model's vocabulary.
        seed: For noise, timesteps and which swaps are tried.
        how: Settings.
        forbidden: Words that may not be used.
        rows: The largest number of rows in one evaluation of the denoiser.

    Raises:
        NotApplicable: The model's text encoder gives no token ids.
        UserError: The start is empty or not read as one token a word, or nothing is left to type.
    """
    words, current = Words(model, forbidden), start.split()
    if not current or set(current) - set(model.vocabulary):
        raise UserError(f"{start!r}: start from words that the model reads as one token each")
    (stream,) = generators([seed])
    losses = []
    with model.counted() as cost, frozen(model.denoiser):
        for _ in range(how.rounds):
            draw = _draw(model, latent, stream, how)
            loss, slope = _slopes(model, latent, " ".join(current), draw)
            gains = slope[1 : len(current) + 1] @ model.token_table[words.ids].T.float()
            tried = [[*current[:i], words.words[w], *current[i + 1 :]] for i, w in _promising(gains, how, stream)]
            losses.append(loss)
            values = _losses(model, latent, [" ".join(t) for t in tried], draw, rows)
            if values.min() < loss:
                current = tried[int(values.argmin())]
    return Typed(" ".join(current), tuple(losses), cost.forward)


Draw = tuple[Tensor, Tensor, Tensor]  # noisy latents, their timesteps, their noise


def _draw(model: TypedModel, latent: Tensor, stream: torch.Generator, how: PromptSearch) -> Draw:
    """Noisy versions of the picture from the noisiest part of the schedule."""
    t = model.timestep(drawn_levels(how.batch, stream, lowest=1 - how.noisy)).to(latent.device)
    noise = torch.randn(how.batch, *latent.shape[1:], generator=stream).to(latent)
    return model.add_noise(latent.expand_as(noise), noise, t), t, noise


def _errors(model: TypedModel, latent: Tensor, draw: Draw, cond: Condition) -> Tensor:
    """DoRI's loss over a draw for each of a few conditions, (n,)."""
    x, t, noise = draw
    count = len(cond)
    prediction = model.predict(x.repeat(count, 1, 1, 1), t.repeat(count), cond.repeat(len(x)))
    errors = prediction.error(latent, noise.repeat(count, 1, 1, 1))
    return errors.reshape(count, -1).mean(1)


def _slopes(model: TypedModel, latent: Tensor, prompt: str, draw: Draw) -> tuple[float, Tensor]:
    """The loss of a prompt, and its slope in each token's input, (tokens, width)."""
    ids = model.encode([prompt]).ids
    assert ids is not None  # `Words` has refused models without
    with torch.enable_grad():
        inputs = model.token_table[ids].requires_grad_()
        loss = _errors(model, latent, draw, model.encode_tokens(ids, inputs))[0]
        (slope,) = torch.autograd.grad(loss, inputs)
    return loss.item(), slope[0].float()


def _losses(model: TypedModel, latent: Tensor, prompts: Sequence[str], draw: Draw, rows: int) -> Tensor:
    """The loss of each prompt, (n,)."""
    size = max(rows // len(draw[0]), 1)
    with torch.no_grad():
        parts = [model.encode(prompts[i : i + size]) for i in range(0, len(prompts), size)]
        return torch.cat([_errors(model, latent, draw, part) for part in parts])


def _promising(slopes: Tensor, how: PromptSearch, stream: torch.Generator) -> list[tuple[int, int]]:
    """Swaps to try: (position, word), drawn among the words with the lowest slope (positions, words) at each."""
    best = slopes.topk(min(how.top, slopes.shape[1]), dim=1, largest=False).indices
    drawn = torch.randperm(best.numel(), generator=stream)[: how.tried]
    return [(int(i) // best.shape[1], int(best.flatten()[i])) for i in drawn]
