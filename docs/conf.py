"""Sphinx configuration."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

import lnlbench

project = "lnlbench"
author = "The lnlbench developers"
copyright = "2026, The lnlbench developers"
version = release = lnlbench.__version__

extensions = [
    "myst_parser",
    "sphinx_click",
    "live_reference",
    "mathml",
    "terminal",
    "pictures",
    "evidence",
    "api_pages",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build", "examples"]
html_theme = "furo"
html_title = f"lnlbench {release}"
myst_heading_anchors = 3
myst_enable_extensions = ["deflist"]
html_static_path = ["_static"]
html_css_files = ["learn.css"]
html_math_renderer = "mathml"
nitpicky = True
# "--method" is an option, not a dash.
smartquotes = False

autodoc_default_options = {"members": True, "undoc-members": True, "member-order": "bysource"}
autodoc_inherit_docstrings = False
autoclass_content = "both"
napoleon_numpy_docstring = False
napoleon_use_rtype = False
python_use_unqualified_type_names = True
nitpick_ignore_regex = [
    # Other people's types: their documentation is elsewhere, and the build asks no other host for it.
    ("py:class", r"(collections\.abc|contextlib|nn|np|numpy|pathlib|pluggy|torch)\..+|NDArray|Path|Tensor"),
    # A type variable, and what is behind the public names.
    ("py:class", r"(.+\.)?ConfigT|ParameterSet|lnlbench\.(engine|testing\.(doubles|laboratory))\..+"),
]

# For `tox -e links`.
linkcheck_timeout = 30
linkcheck_retries = 2
linkcheck_rate_limit_timeout = 120
linkcheck_report_timeouts_as_broken = True
# GitHub and PDF viewers make anchors by script.
linkcheck_anchors_ignore_for_url = [r"https://github\.com/.*", r".*\.pdf"]
# These refuse whatever is no browser, and serve their pages all the same.
linkcheck_ignore = [r"https://doi\.org/.*", r"https://(dl\.acm|ieeexplore\.ieee|openreview)\.(org|net)/.*"]
