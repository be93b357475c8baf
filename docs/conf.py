"""Sphinx settings: `make docs`."""

import os
import re
from importlib.metadata import version as installed

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # or importing it for the docstrings warns of torchvision

project = "unmemorize"
author = "The unmemorize authors"
release = version = installed("unmemorize")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "results"]

autodoc_typehints = "none"

html_theme = "alabaster"
html_theme_options = {"description": "Memorization audits of text-to-image models", "fixed_sidebar": True}


def _plain(app, what, name, obj, options, lines):
    """Docstrings are plain text, in which |x|, x_ and * mean themselves; sources are paragraphs of their own."""
    text = re.sub(r"([|*_])", r"\\\1", "\n".join(lines))
    lines[:] = re.sub(r"\n(Paper|Reference implementation|Differs):", r"\n\n**\1:**", text).split("\n")


def setup(app):
    """Escape before napoleon reads the sections."""
    app.connect("autodoc-process-docstring", _plain, priority=400)
