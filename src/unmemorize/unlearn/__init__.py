"""Unlearners, which train memories out of a model, one technique a file. All modules here are registered."""

from unmemorize.core.methods import import_beside

import_beside(__name__, __path__)
