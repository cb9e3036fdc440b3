"""Sphinx configuration."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

import lnlbench

project = "lnlbench"
author = "The lnlbench developers"
copyright = "2026, The lnlbench developers"
version = release = lnlbench.__version__

extensions = ["myst_parser", "sphinx_click", "live_reference"]
exclude_patterns = ["_build", "examples"]
html_theme = "furo"
html_title = f"lnlbench {release}"
myst_heading_anchors = 3
nitpicky = True
# "--method" is an option, not a dash.
smartquotes = False
