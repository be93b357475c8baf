"""Find the layers that methods look at, by structure and not by index."""

from __future__ import annotations

from typing import Literal

from torch import nn

from unmemorize.core.errors import NotApplicable, UserError

Reach = Literal["down-mid", "all"]
_STAGES = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}  # as executed; a UNet lists its middle last


def value_projections(denoiser: nn.Module, reach: Reach = "all") -> dict[str, nn.Linear]:
    """Value projections of cross-attention by module name, first executed first; `down-mid` leaves out the way up.

    Raises:
        NotApplicable: There is none.
    """
    found = {n: layer for n, layer in _linear(denoiser, "attn2.to_v").items() if reach == "all" or _stage(n) < 2}
    if not found:
        where = "cross-attention" if reach == "all" else "cross-attention on its way down"
        raise NotApplicable(f"{type(denoiser).__name__} has no {where} (attn2.to_v)")
    return found


def feed_forward_outputs(denoiser: nn.Module) -> dict[str, nn.Linear]:
    """The second linear layer of every transformer feed-forward by module name, first executed first.

    Raises:
        NotApplicable: There is none.
    """
    found = _linear(denoiser, "ff.net.2")
    if not found:
        raise NotApplicable(f"{type(denoiser).__name__} has no transformer feed-forward (ff.net.2)")
    return found


def check_finite(denoiser: nn.Module) -> None:
    """Refuse NaN and infinite weights: every comparison with them would be silently false.

    Raises:
        UserError: There are some.
    """
    for name, parameter in denoiser.named_parameters():
        if not parameter.isfinite().all():
            raise UserError(f"the model has NaN or infinite weights in {name}: name a sound checkpoint")


def _stage(name: str) -> int:
    return _STAGES.get(name.split(".")[0], 0)


def _linear(denoiser: nn.Module, ending: str) -> dict[str, nn.Linear]:
    found = {n: m for n, m in denoiser.named_modules() if f".{n}".endswith(f".{ending}") and isinstance(m, nn.Linear)}
    return dict(sorted(found.items(), key=lambda item: _stage(item[0])))
