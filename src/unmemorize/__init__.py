"""Find what a text-to-image diffusion model has memorized, show it, remove it, and prove that it is gone."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unmemorize.audit import run_audit
    from unmemorize.core.sample import generate, trajectory
    from unmemorize.core.specs import AuditSpec
    from unmemorize.mitigate.edit import Edit
    from unmemorize.models.load import load, wrap
    from unmemorize.stages.guard import Guard as guard

__version__ = "0.1.0"
_HOMES = {
    "AuditSpec": "unmemorize.core.specs",
    "Edit": "unmemorize.mitigate.edit",
    "run_audit": "unmemorize.audit",
    "generate": "unmemorize.core.sample",
    "guard": "unmemorize.stages.guard",
    "load": "unmemorize.models.load",
    "trajectory": "unmemorize.core.sample",
    "wrap": "unmemorize.models.load",
}
__all__ = ["AuditSpec", "Edit", "__version__", "generate", "guard", "load", "run_audit", "trajectory", "wrap"]
__all__ += ["audit", "detect"]


def __getattr__(name: str) -> Any:
    # Resolved on first use: importing the package loads neither torch nor diffusers.
    if name in _CALLS:
        return import_module(f"unmemorize.{name}")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'unmemorize' has no attribute {name!r}")


class _Callable(ModuleType):
    """A package that can be called, and sent to another process by its name, as a function is."""

    def __reduce__(self) -> tuple[Any, ...]:
        return import_module, (self.__name__,)


class _Audit(_Callable):
    """The package `unmemorize.audit`, which can be called."""

    def __call__(self, model: str = "testbed", *, run: str = "", **settings: Any) -> dict[str, Any]:
        """Run or continue an audit; returns its summary.

        Args:
            model: What `load` takes.
            run: The run directory; `runs/MODEL` by default.
            **settings: Fields of `AuditSpec`, named as the command's options.
        """
        from unmemorize.audit.run import run_audit
        from unmemorize.core.run import default_run
        from unmemorize.core.specs import AuditSpec

        return run_audit(AuditSpec(model=model, **settings), default_run(run, model))


class _Detect(_Callable):
    """The package `unmemorize.detect`, which can be called."""

    def __call__(self, model: str = "testbed", *, run: str = "", **settings: Any) -> list[dict[str, Any]]:
        """Score prompts; returns a row a prompt, highest score first.

        Args:
            model: What `load` takes.
            run: The run directory, where a stopped call continues; `runs/detect-MODEL` by default.
            **settings: Fields of `core.specs.DetectSpec`, named as the command's options.
        """
        from unmemorize.core.run import default_run
        from unmemorize.core.specs import DetectSpec
        from unmemorize.stages.detect import detect

        folder = default_run(run, model, "detect")
        return list(detect(DetectSpec(model=model, **settings), folder, lambda *done: None))


_CALLS = {"audit": _Audit, "detect": _Detect}


class _Library(ModuleType):
    """This package. Two of its packages are named as what they are for, so they are made callable when imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _CALLS and isinstance(value, ModuleType):
            value.__class__ = _CALLS[name]
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Library
