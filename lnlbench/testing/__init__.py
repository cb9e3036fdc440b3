"""For those who write methods: small doubles of task and run, and the checks of ``lnlbench check`` for pytest."""

from lnlbench.testing.conformance import CHECKS, Check, checks
from lnlbench.testing.doubles import (
    MemoryEncoder,
    MemoryRun,
    MemoryStage,
    MemoryTask,
    SmallNetwork,
    task_info,
    toy_task,
)

__all__ = [
    "CHECKS",
    "Check",
    "MemoryEncoder",
    "MemoryRun",
    "MemoryStage",
    "MemoryTask",
    "SmallNetwork",
    "checks",
    "task_info",
    "toy_task",
]
