"""Find the layers of a denoiser that methods look at, by structure and not by index."""

from __future__ import annotations

from fnmatch import fnmatchcase

import torch
from torch import nn

from unmemorize.core.errors import NotApplicable
from unmemorize.core.model import Reach

PLAIN = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# What linear layers of attention are called: of pictures, of the stream of the text, of both in one, of Kandinsky 5.
ATTENTION = (
    *("to_q", "to_k", "to_v", "to_out.0"),
    *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    *("to_qkv_mlp_proj", "attn.to_out"),
    *("to_query", "to_key", "to_value", "self_attention.out_layer", "cross_attention.out_layer"),
)
_STAGES = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}  # as executed; a UNet lists its middle last


def value_projections(denoiser: nn.Module, reach: Reach = "all") -> dict[str, nn.Linear]:
    """Value projections of cross-attention by module name, first executed first; `down-mid` leaves out the way up.

    Raises:
        NotApplicable: There is none.
    """
    layers = linear_layers(denoiser, "attn2.to_v")
    if reach == "down-mid":
        layers = {name: layer for name, layer in layers.items() if _stage(name) < _STAGES["up_blocks"]}
    if not layers:
        where = "cross-attention" if reach == "all" else "cross-attention on its way down"
        raise NotApplicable(f"{type(denoiser).__name__} has no {where} (attn2.to_v)")
    return layers


def feed_forward_outputs(denoiser: nn.Module) -> dict[str, nn.Linear]:
    """The second linear layer of every transformer feed-forward by module name, first executed first.

    Raises:
        NotApplicable: There is none.
    """
    layers = linear_layers(denoiser, "ff.net.2")
    if not layers:
        raise NotApplicable(f"{type(denoiser).__name__} has no transformer feed-forward (ff.net.2)")
    return layers


def attention_layers(denoiser: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of every attention, those of the text's stream included, by module name.

    Raises:
        NotApplicable: There is none.
    """
    layers = linear_layers(denoiser, *ATTENTION)
    if not layers:
        raise NotApplicable(f"{type(denoiser).__name__} has no attention of linear layers")
    return layers


def require_hooks(denoiser: nn.Module) -> None:
    """Refuse a network that ignores what is done to its layers, or whose layers are wrapped.

    Raises:
        NotApplicable: It is compiled, its projections are fused, or a LoRA is on.
    """
    if getattr(denoiser, "_compiled_call_impl", None) is not None:
        raise NotApplicable("the denoiser is compiled, so nothing can be done to its layers: leave out .compile()")
    require_plain_layers(denoiser)


def require_plain_layers(network: nn.Module) -> None:
    """Refuse a network whose layers are not those of its configuration.

    Raises:
        NotApplicable: Its projections are fused, or a LoRA is on.
    """
    for name, module in network.named_modules():
        if getattr(module, "fused_projections", False):
            raise NotApplicable(f"{name} has fused projections: call pipe.unfuse_qkv_projections() first")
        if hasattr(module, "lora_A"):
            raise NotApplicable("a LoRA is on: merge it first, by pipe.fuse_lora(); pipe.unload_lora_weights()")


def linear_layers(denoiser: nn.Module, *endings: str) -> dict[str, nn.Linear]:
    """Linear layers whose names end in one of these, in which * stands for anything, in the order of execution.

    Raises:
        NotApplicable: Hooks on them would be ignored, they are wrapped, or their weights are not plain numbers.
    """
    require_hooks(denoiser)
    layers = {}
    for name, module in denoiser.named_modules():
        named = any(fnmatchcase(f".{name}", f"*.{ending}") for ending in endings)
        if named and isinstance(module, nn.Linear):
            layers[name] = module
    for name, module in layers.items():
        if module.weight.is_meta or module.weight.dtype not in PLAIN:
            raise NotApplicable(f"{name} has quantized or offloaded weights: load the model in half precision or more")
    return dict(sorted(layers.items(), key=lambda item: _stage(item[0])))


def _stage(name: str) -> int:
    return _STAGES.get(name.split(".")[0], 0)
