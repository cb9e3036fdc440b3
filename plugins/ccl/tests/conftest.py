"""The doubles of task and run that this package's tests use."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from lnlbench.api import TaskInfo
from lnlbench.testing import MemoryRun, MemoryTask, task_info, toy_task


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def make_info() -> Callable[..., TaskInfo]:
    return task_info


@pytest.fixture
def make_task() -> Callable[..., MemoryTask]:
    return toy_task


@pytest.fixture
def make_run() -> type[MemoryRun]:
    return MemoryRun
