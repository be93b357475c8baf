"""Explainers, which say what in a prompt a memory hangs on, one technique a file. All modules here are registered."""

from unmemorize.core.methods import import_beside

import_beside(__name__, __path__)
