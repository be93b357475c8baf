"""Find what a text-to-image diffusion model has memorized, show it, remove it, and prove that it is gone."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unmemorize.audit import run_audit
    from unmemorize.core.sample import generate, trajectory
    from unmemorize.core.specs import AuditSpec
    from unmemorize.jobs.guard import Guard as guard
    from unmemorize.mitigate.weights import Edit
    from unmemorize.models.load import load, wrap

__version__ = "0.1.0"
_HOMES = {
    "AuditSpec": "unmemorize.core.specs",
    "Edit": "unmemorize.mitigate.weights",
    "run_audit": "unmemorize.audit",
    "generate": "unmemorize.core.sample",
    "guard": "unmemorize.jobs.guard",
    "load": "unmemorize.models.load",
    "trajectory": "unmemorize.core.sample",
    "wrap": "unmemorize.models.load",
}
__all__ = ["AuditSpec", "Edit", "__version__", "generate", "guard", "load", "run_audit", "trajectory", "wrap"]


def __getattr__(name: str) -> Any:
    # Resolved on first use: importing the package loads neither torch nor diffusers.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'unmemorize' has no attribute {name!r}")
