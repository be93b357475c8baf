"""Detectors, which say how memorized a prompt looks, one technique a file. All modules here are registered."""

from unmemorize.core.methods import import_beside

import_beside(__name__, __path__)
