"""Tests of this package need it installed, as those of any other do; in a checkout of something else they stay out."""

from __future__ import annotations

import importlib.util

collect_ignore = [] if importlib.util.find_spec("co_teaching") else ["tests"]
