"""Tensors of a run directory."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from unmemorize.core.errors import UserError
from unmemorize.core.files import require_file


def read_tensors(path: Path, remedy: str) -> dict[str, Tensor]:
    """The tensors of a file; `remedy` ends the message.

    Raises:
        UserError: It is missing, damaged, or no regular file.
    """
    require_file(path, remedy)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: damaged: {remedy}") from error
