"""The words that a model reads as one token each: what a search may type, and what unlearning can keep as it is."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from unmemorize.core.errors import NotApplicable, UserError
from unmemorize.core.model import TypedModel

BATCH = 1024  # words encoded at once: a large vocabulary's embeddings together fill a machine


class Words:
    """The words of a model's vocabulary that are one token alone, less forbidden ones.

    Attributes:
        words: The words.
        ids: Their tokens, (words,).

    Raises:
        NotApplicable: The model's text encoder gives no token ids.
        UserError: No word is left.
    """

    def __init__(self, model: TypedModel, forbidden: Collection[str] = ()) -> None:
        banned = {word.lower() for word in forbidden}
        every = [word for word in model.vocabulary if word.lower() not in banned]
        starts = range(0, max(len(every), 1), BATCH)
        tokens = torch.cat([_single_tokens(model, every[i : i + BATCH] or [""]) for i in starts])
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
