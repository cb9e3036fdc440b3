from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import lnlbench.blocks

MODULES = sorted(module.name for module in pkgutil.iter_modules(lnlbench.blocks.__path__))


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_hold(name: str) -> None:
    results = doctest.testmod(importlib.import_module(f"lnlbench.blocks.{name}"))
    assert results.attempted > 0
    assert results.failed == 0
