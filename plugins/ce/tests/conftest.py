"""A small harness for tests of the method alone: a task and a run that keep the contracts, on tensors in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lnlbench.api import Batch, Selection, TaskInfo


class MemoryLoader:
    def __init__(self, task: MemoryTask, batch_size: int, index: Tensor | None) -> None:
        self.task, self.batch_size = task, batch_size
        self.index = torch.arange(task.num_train) if index is None else index

    def __len__(self) -> int:
        return -(-len(self.index) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(self.task.epoch)
        for places in torch.randperm(len(self.index), generator=generator).split(self.batch_size):
            rows = self.index[places]
            self.task.served.append(rows)
            yield Batch(index=rows, labels=self.task.labels[rows], views=(self.task.images[rows],))

    def forever(self) -> Iterator[Batch]:
        while True:
            yield from self


class MemoryTask:
    """Sixty points around three corners, as images of 2 x 2 pixels."""

    def __init__(self, info: TaskInfo) -> None:
        generator = torch.Generator().manual_seed(1)
        self.info, self.num_train, self.num_classes = info, 60, 3
        self.device = torch.device("cpu")
        self.labels = torch.arange(60) % 3
        self.images = 0.3 * torch.randn(60, 1, 2, 2, generator=generator)
        self.images.flatten(1)[torch.arange(60), self.labels] += 2.0
        self.epoch = -1
        self.asked_loaders: list[tuple[str, int]] = []
        self.served: list[Tensor] = []
        self.selection: Selection | None = None

    def network(self, role: str, backbone: str) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(len(role) + len(backbone))
            return nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))

    def loader(self, role: str, *, batch_size: int, index: Tensor | None = None) -> MemoryLoader:
        """Accept only what the method is meant to pass: the default view, shuffled."""
        self.asked_loaders.append((role, batch_size))
        return MemoryLoader(self, batch_size, index)


class MemoryRun:
    def __init__(
        self, task: MemoryTask, *, stop_after: int | None = None, resume: dict[str, Any] | None = None
    ) -> None:
        self.task, self.device = task, task.device
        self.stop_after, self.resume = stop_after, resume
        self.tracked: dict[str, Any] = {}
        self.logged: list[tuple[int, dict[str, Tensor | float]]] = []
        self.rates: list[float] = []
        self.modes: list[bool] = []
        self.saved: dict[str, Any] = {}
        self.reported: list[tuple[int, dict[str, Tensor]]] = []

    def epochs(self, total: int) -> Iterator[int]:
        start = 0
        if self.resume is not None:
            start = self.resume["epoch"] + 1
            self.tracked["network"].load_state_dict(self.resume["network"])
            self.tracked["optimizer"].load_state_dict(self.resume["optimizer"])
        for self.task.epoch in range(start, total):
            self.tracked["network"].eval()
            yield self.task.epoch
            self.rates.append(self.tracked["optimizer"].param_groups[0]["lr"])
            self.modes.append(self.tracked["network"].training)
            if self.task.epoch == self.stop_after:
                self.saved = {"epoch": self.task.epoch}
                self.saved |= {name: state.state_dict() for name, state in self.tracked.items()}
                return

    def track(self, **state: Any) -> None:
        self.tracked.update(state)

    def log(self, **values: Tensor | float) -> None:
        self.logged.append((self.task.epoch, values))

    def report(self, **verdicts: Tensor) -> None:
        self.reported.append((self.task.epoch, verdicts))


def task_info(dataset: str = "toy", **changes: Any) -> TaskInfo:
    facts: dict[str, Any] = {
        "suite": f"{dataset}-sym",
        "task": "0.40",
        "dataset": dataset,
        "num_classes": 3,
        "num_train": 60,
        "image_size": 2,
        "channels": 1,
        "class_names": ("a", "b", "c"),
        "default_backbone": "small-cnn",
        "default_epochs": 40,
        "default_encoder": "glyphs",
        "_noise_type": "symmetric",
        "_noise_rate": 0.4,
        "asked": set(),
    }
    return TaskInfo(**(facts | changes))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def make_info() -> Callable[..., TaskInfo]:
    return task_info


@pytest.fixture
def make_task() -> Callable[[], MemoryTask]:
    return lambda: MemoryTask(task_info())


@pytest.fixture
def make_run() -> Callable[..., MemoryRun]:
    return MemoryRun
