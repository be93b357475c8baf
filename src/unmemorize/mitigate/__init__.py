"""Mitigations, which keep a model from giving memories back, one a file. All modules here are registered."""

from unmemorize.core.methods import import_beside

import_beside(__name__, __path__)
