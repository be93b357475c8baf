"""The logits of cross-attention, which its usual implementation computes and forgets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn

from unmemorize.core.errors import NotApplicable
from unmemorize.core.model import AttentionChange, Reach
from unmemorize.models.layers import value_projections


def attending(denoiser: nn.Module, change: AttentionChange, reach: Reach = "all") -> AbstractContextManager[None]:
    """Pass the logits of cross-attention through a function, layer by layer, for the length of a block.

    Outside of the block attention is computed as before; in it, by diffusers' plain processor.

    Raises:
        NotApplicable: There is no cross-attention, or it is computed by somebody else's processor.
    """
    layers: dict[str, Any] = {}
    for projection in value_projections(denoiser, reach):
        name = projection.removesuffix(".to_v")
        layers[name] = denoiser.get_submodule(name)
        if not isinstance(layers[name].processor, AttnProcessor | AttnProcessor2_0):
            raise NotApplicable(f"{name} is computed by {type(layers[name].processor).__name__}, which shows no logits")
    return _attending(layers, change)


@contextmanager
def _attending(layers: dict[str, Any], change: AttentionChange) -> Iterator[None]:
    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.callback(vars(layer).pop, "get_attention_scores")
            stack.callback(setattr, layer, "processor", layer.processor)
            layer.processor = AttnProcessor()
            layer.get_attention_scores = partial(_scores, layer, partial(change, name))
        yield


def _scores(
    layer: Any, change: Callable[[Tensor], Tensor], query: Tensor, key: Tensor, attention_mask: Tensor | None = None
) -> Tensor:
    """What `Attention.get_attention_scores` gives, with the logits changed: rows are pictures times heads."""
    dtype = query.dtype
    if layer.upcast_attention:
        query, key = query.float(), key.float()
    logits = layer.scale * query @ key.transpose(-1, -2)
    if attention_mask is not None:
        logits = logits + attention_mask
    logits = change(logits.unflatten(0, (-1, layer.heads))).flatten(0, 1)
    if layer.upcast_softmax:
        logits = logits.float()
    return logits.softmax(dim=-1).to(dtype)
