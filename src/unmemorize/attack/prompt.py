"""Prompt search: words that anybody can type, and that bring a given picture back."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unmemorize.core.batches import in_batches
from unmemorize.core.bounds import Count, Draws, Share
from unmemorize.core.errors import UserError
from unmemorize.core.hooks import frozen
from unmemorize.core.methods import Attack, Subject, method
from unmemorize.core.model import Condition, TypedModel, drawn_levels, typed
from unmemorize.core.results import Found
from unmemorize.core.sample import generators
from unmemorize.core.vocabulary import BATCH, Words

Draw = tuple[Tensor, Tensor, Tensor]  # noisy latents, their timesteps, their noise


def nearest_words(model: TypedModel, embed: Tensor, count: int) -> str:
    """The words whose own encodings, less the empty prompt's, point most to where `embed` (tokens, width) lies."""
    words, empty = Words(model).words, model.encode([""]).embeds.flatten()
    meant = (embed.flatten() - empty)[None]
    parts = (model.encode(words[i : i + BATCH]).embeds.flatten(1) for i in range(0, len(words), BATCH))
    closeness = torch.cat([torch.cosine_similarity(part - empty, meant) for part in parts])
    return " ".join(words[i] for i in closeness.topk(count).indices.tolist())


@method(
    "prompt-search",
    paper="after Ebrahimi et al. 2018 (HotFlip) and Zou et al. 2023 (GCG)",
    cost="100 evaluations a round and picture, 4 of them with gradient",
    needs=("gradients", "pictures", "tokens"),
)
@dataclass(frozen=True)
class PromptSearch(Attack):
    """Words that anybody can type: swap those of the prompt, one a round, for ones that denoise the picture better.

    A round draws fresh noise and timesteps. The gradient of DoRI's loss with respect to what each word puts into the
    text encoder says which swaps promise most; a random few of those are evaluated on the same noise, and the best is
    kept if it beats the prompt as it is. Words are ones that are a token of their own, so that the prompt, typed, is
    read as the very tokens that were found.

    Paper: Ebrahimi et al. 2018 (HotFlip) for the linear estimate; Zou et al. 2023, algorithm 1 (GCG), for the search.
    Differs: the loss is DoRI's, over fresh noise; the rest of the token positions stay padding.

    Attributes:
        updates: Rounds of swaps.
        batch: Noisy versions of the picture that a round looks at.
        tried: Swaps that a round evaluates.
        top: The words that the gradient likes best at each position, among which swaps are drawn.
        noisy: The noisiest share of noise levels, from which they are drawn.
    """

    updates: Count = 20
    batch: Count = 4
    tried: Draws = 24
    top: Count = 64
    noisy: Share = 0.4

    def attack(
        self,
        subject: Subject,
        latents: Tensor,
        start: Condition,
        *,
        seeds: Sequence[int],
        keep: Collection[int] = (),
    ) -> Found:
        """Search for every picture, from its prompt's words that are one token each; conditions hold the prompts.

        On the way only the start is kept.

        Raises:
            NotApplicable: The model's text encoder gives no token ids.
            UserError: A start is no prompt, or none of its words is a token of its own.
        """
        model = typed(subject.model)
        words = Words(model)
        prompts, losses = [], []
        with model.counted() as cost:
            for latent, text, seed in zip(latents, _typed_words(start, words), seeds, strict=True):
                prompt, trace = self.search(model, latent[None], text, seed=seed, words=words)
                prompts.append(prompt)
                losses.append(torch.tensor(trace))
        conditions = {0: start, self.updates: model.encode(prompts)}
        return Found(conditions, torch.stack(losses, dim=1), cost.forward)

    def search(
        self, model: TypedModel, latent: Tensor, start: str, *, seed: int, words: Words, rows: int = 64
    ) -> tuple[str, list[float]]:
        """A prompt for one picture, and the loss before each round's swap.

        Args:
            model: The model to attack, under whatever is applied to it.
            latent: The picture's latent, (1, c, h, w).
            start: Words to begin with; their number stays. Each has to be one of the model's vocabulary.
            seed: For noise, timesteps and which swaps are tried.
            words: Words that may be used.
            rows: The largest number of rows in one evaluation of the denoiser.

        Raises:
            UserError: The start is empty or not read as one token a word.
        """
        current = start.split()
        if not current or set(current) - set(model.vocabulary):
            raise UserError(f"{start!r}: start from words that the model reads as one token each")
        (stream,) = generators([seed])
        losses = []
        with frozen(model.denoiser):
            for _ in range(self.updates):
                draw = self._draw(model, latent, stream)
                loss, slope = _slopes(model, latent, " ".join(current), draw)
                gains = slope[1 : len(current) + 1] @ model.token_table[words.ids].T.float()
                tried = []
                for place, word in self._promising(gains, stream):
                    tried.append([*current[:place], words.words[word], *current[place + 1 :]])
                losses.append(loss)
                values = _losses(model, latent, [" ".join(t) for t in tried], draw, rows)
                if values.min() < loss:
                    current = tried[int(values.argmin())]
        return " ".join(current), losses

    def _draw(self, model: TypedModel, latent: Tensor, stream: torch.Generator) -> Draw:
        """Noisy versions of the picture from the noisiest part of the schedule."""
        t = model.timestep(drawn_levels(self.batch, stream, lowest=1 - self.noisy)).to(latent.device)
        noise = torch.randn(self.batch, *latent.shape[1:], generator=stream).to(latent)
        return model.add_noise(latent.expand_as(noise), noise, t), t, noise

    def _promising(self, slopes: Tensor, stream: torch.Generator) -> list[tuple[int, int]]:
        """Swaps to try: (position, word), drawn among the words with the lowest slope (positions, words) at each."""
        best = slopes.topk(min(self.top, slopes.shape[1]), dim=1, largest=False).indices
        drawn = torch.randperm(best.numel(), generator=stream)[: self.tried]
        return [(int(i) // best.shape[1], int(best.flatten()[i])) for i in drawn]


def _typed_words(start: Condition, words: Words) -> list[str]:
    """Every row's prompt without the words that are not one token.

    Raises:
        UserError: A row is no prompt, or nothing of it is left.
    """
    if start.texts is None:
        raise UserError("prompt-search starts from words: start from prompts, not from random embeddings")
    known = set(words.words)
    typed_texts = []
    for text in start.texts:
        typed_words = [word for word in text.lower().split() if word in known]
        if not typed_words:
            raise UserError(f"{text!r}: none of its words is a token of its own: start from another prompt")
        typed_texts.append(" ".join(typed_words))
    return typed_texts


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
        # In half precision the gradient of a mean over so many values would be rounded to zero on its way back.
        (slope,) = torch.autograd.grad(loss * latent.numel(), inputs)
    return loss.item(), slope[0].float() / latent.numel()


def _losses(model: TypedModel, latent: Tensor, prompts: Sequence[str], draw: Draw, rows: int) -> Tensor:
    """The loss of each prompt, (n,)."""
    each = len(draw[0])

    def errors(part: slice) -> Tensor:
        return _errors(model, latent, draw, model.encode(prompts[part]))

    with torch.no_grad():
        parts = in_batches(model, len(prompts), errors, size=max(rows // each, 1), rows=each)
        return torch.cat([losses for _, losses in parts])
