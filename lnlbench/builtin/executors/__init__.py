"""Executors on this machine."""

from __future__ import annotations

from lnlbench.api import ExecutorEntry

ENTRIES = (
    ExecutorEntry(
        name="inline",
        target="lnlbench.builtin.executors.inline:InlineExecutor",
        summary="One cell after the other in this process; for debugging.",
    ),
    ExecutorEntry(
        name="local",
        target="lnlbench.builtin.executors.local:LocalExecutor",
        summary="One worker process per cell, side by side on the local devices.",
    ),
)
