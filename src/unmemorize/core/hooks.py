"""Temporary changes to a module. Everything here is a context manager that restores what it found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from unmemorize.core.errors import NotApplicable


@contextmanager
def record(module: nn.Module, names: Sequence[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Collect, call by call, what the named submodules return.

    Raises:
        KeyError: A name is not a submodule's.
    """
    outputs: dict[str, list[Tensor]] = {name: [] for name in names}

    def keep(name: str) -> Callable[[Tensor], Tensor]:
        def hook(output: Tensor) -> Tensor:
            outputs[name].append(output)
            return output

        return hook

    with patched(module, {name: keep(name) for name in names}):
        yield outputs


@contextmanager
def patched(module: nn.Module, changes: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Pass what the named submodules return through a function each.

    Raises:
        KeyError: A name is not a submodule's.
    """
    with ExitStack() as stack:
        for name, change in changes.items():
            handle = _submodule(module, name).register_forward_hook(lambda _m, _i, out, change=change: change(out))
            stack.callback(handle.remove)
        yield


@contextmanager
def observed(module: nn.Module, watchers: Mapping[str, Callable[[Tensor], None]]) -> Iterator[None]:
    """Show the input of each named submodule, call by call, to a function each.

    Raises:
        KeyError: A name is not a submodule's.
    """
    with ExitStack() as stack:
        for name, watch in watchers.items():
            submodule = _submodule(module, name)
            handle = submodule.register_forward_pre_hook(lambda _m, given, watch=watch: watch(given[0]))
            stack.callback(handle.remove)
        yield


def _submodule(module: nn.Module, name: str) -> nn.Module:
    try:
        return module.get_submodule(name)
    except AttributeError as error:
        raise KeyError(name) from error


def outputs_before(module: nn.Module, name: str, run: Callable[[], object]) -> dict[str, Any]:
    """The outputs, by name, of the submodules that end before the named one starts; `run` calls the module once.

    Of nested submodules only the outermost is among them, and none that is called twice or whose output has no row a
    batch element.

    Raises:
        KeyError: The name is not a submodule's.
    """
    submodules = dict(module.named_modules())
    outputs: dict[str, Any] = {}
    calls: Counter[str] = Counter()
    rows: list[int] = []

    def keep(at: str) -> Callable[[nn.Module, object, Any], None]:
        def hook(_module: nn.Module, _inputs: object, output: Any) -> None:
            calls[at] += 1
            if not rows:
                outputs[at] = output

        return hook

    with ExitStack() as stack:
        for at, submodule in submodules.items():
            stack.callback(submodule.register_forward_hook(keep(at)).remove)
        start = submodules[name].register_forward_pre_hook(lambda _m, given: rows.append(len(given[0])))
        stack.callback(start.remove)
        run()
    fit = {n for n, output in outputs.items() if calls[n] == 1 and _is_by_row(output, rows[0])}
    return {n: outputs[n] for n in fit if not any(n.startswith(f"{outer}.") for outer in fit)}


def _is_by_row(output: Any, rows: int) -> bool:
    leaves = tree_leaves(output)
    return all(isinstance(leaf, Tensor) and leaf.shape[:1] == (rows,) for leaf in leaves)


@contextmanager
def replayed(module: nn.Module, outputs: Mapping[str, Any], rows: Tensor) -> Iterator[None]:
    """Let the named submodules return these rows of earlier outputs and compute nothing.

    Raises:
        KeyError: A name is not a submodule's.
    """
    with ExitStack() as stack:
        for name, output in outputs.items():
            own = vars(_submodule(module, name))
            stack.callback(own.update, {"forward": own["forward"]} if "forward" in own else {})
            stack.callback(own.pop, "forward")
            own["forward"] = lambda *_, output=output, **__: tree_map(lambda x: x[rows], output)
        yield


@contextmanager
def replaced(module: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Put other values into the named parameters; the old ones come back bit for bit.

    Raises:
        KeyError: A name is not a parameter's.
    """
    parameters = dict(module.named_parameters())
    before = {name: parameters[name].detach().clone() for name in weights}
    try:
        with torch.no_grad():
            for name, value in weights.items():
                parameters[name].copy_(value)
        yield
    finally:
        with torch.no_grad():
            for name, value in before.items():
                parameters[name].copy_(value)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Evaluation mode and no parameter gradients: only gradients of inputs are computed.

    Raises:
        NotApplicable: Weights are kept in float8, through which no gradient passes.
    """
    if any(p.dtype.itemsize == 1 and p.dtype.is_floating_point for p in module.parameters()):
        raise NotApplicable(
            "its weights are kept in float8 (layerwise casting), through which no gradient passes: load it without"
        )
    modes = {m: m.training for m in module.modules()}
    flags = {p: p.requires_grad for p in module.parameters()}
    try:
        module.eval().requires_grad_(False)
        yield
    finally:
        for m, training in modes.items():
            m.training = training
        for p, flag in flags.items():
            p.requires_grad_(flag)


@contextmanager
def checkpointed(module: Any, wanted: bool = True) -> Iterator[None]:
    """Compute activations again in the backward pass instead of keeping them: a diffusers model in less memory."""
    if not wanted or module.is_gradient_checkpointing:
        yield
        return
    module.enable_gradient_checkpointing()
    try:
        yield
    finally:
        module.disable_gradient_checkpointing()
