"""Plain cross-entropy, the baseline of every table, as an lnlbench method."""

from __future__ import annotations

from collections.abc import Sequence

from lnlbench.api import MethodEntry, hookimpl


@hookimpl
def lnlbench_methods() -> Sequence[MethodEntry]:
    """Add plain cross-entropy."""
    return [
        MethodEntry(
            name="ce",
            target="lnlbench_ce.ce:CrossEntropy",
            summary="Plain training on the given labels, as if they were right: the baseline.",
            starts_from_selection=True,
        )
    ]
