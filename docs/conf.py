"""Sphinx settings: `make docs`."""

from importlib.metadata import version as installed

project = "unmemorize"
author = "The unmemorize authors"
release = version = installed("unmemorize")

extensions = ["myst_parser"]
myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "results"]

html_theme = "alabaster"
html_theme_options = {"description": "Memorization audits of text-to-image models", "fixed_sidebar": True}
