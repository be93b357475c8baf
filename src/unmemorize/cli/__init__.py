"""The command line: parsing and printing, no logic. One file a command or a few that belong together."""

from __future__ import annotations

import os
import sys

from unmemorize.cli import (  # noqa: F401
    attack,
    audit,
    data,
    detect,
    explain,
    generate,
    inspect,
    locality,
    locate,
    mitigate,
    testbed,
    triggers,
)
from unmemorize.cli.app import app
from unmemorize.cli.terminal import errors, say
from unmemorize.core.errors import UnmemorizeError


def main() -> None:
    """Run the command line; a mistake is one line and exit code 2."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # or it warns of torchvision, which nothing here needs
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")  # or it prints what it cut off an overlong prompt
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads slow a busy machine manyfold
    try:
        app()
    except (UnmemorizeError, OSError) as error:
        say(f"error: {error}", to=errors, style="red")
        sys.exit(2)
