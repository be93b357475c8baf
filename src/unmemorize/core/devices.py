"""Devices as a user names them."""

from __future__ import annotations

import torch

from unmemorize.core.errors import UserError


def device_of(name: str | torch.device) -> torch.device:
    """The device of that name.

    Raises:
        UserError: There is no such device, or none here.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name}: no such device: name cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {name}: torch sees no GPU here: leave it out, or name cpu")
    return device
