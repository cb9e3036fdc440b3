"""Every method that comes with lnlbench passes the checks that anybody's method has to pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lnlbench.plugins import discover
from lnlbench.testing import checks

METHODS = tuple(registered.entry.name for registered in discover().methods)


@pytest.mark.slow
@pytest.mark.parametrize(
    "check",
    [pytest.param(*each.values, id=f"{method}-{each.id}") for method in METHODS for each in checks(method)],
)
def test_conforms(check: Callable[[], None]) -> None:
    check()
