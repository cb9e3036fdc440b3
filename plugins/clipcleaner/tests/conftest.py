"""A small harness for tests of the method alone: tasks and runs that keep the contracts, on tensors in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lnlbench.api import Batch, Selection, TaskInfo, ValidationSplit, ViewRecipe


def seed_of(*parts: object) -> int:
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=4).digest(), "little")


class SmallNetwork(nn.Module):
    """Two convolutions with batch norm, and a linear layer."""

    num_features = 16

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
        )
        self.head = nn.Linear(16, num_classes)

    def embed(self, images: Tensor) -> Tensor:
        maps: Tensor = self.layers(images)
        return maps.mean((2, 3))

    def classify(self, features: Tensor) -> Tensor:
        logits: Tensor = self.head(features)
        return logits

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.embed(images))


@dataclass
class Clock:
    """The moment that random streams and loaders depend on."""

    seed: int = 0
    epoch: int = -1
    passes: dict[str, int] = field(default_factory=dict)
    streams: dict[str, MemoryStream] = field(default_factory=dict)

    def move_to(self, epoch: int) -> None:
        self.epoch = epoch
        self.passes.clear()
        self.streams.clear()


class MemoryStream:
    def __init__(self, name: str, clock: Clock) -> None:
        where = (name, clock.epoch, clock.seed)
        self._numpy = np.random.default_rng(seed_of("stream", *where))
        self._torch = torch.Generator().manual_seed(seed_of("torch stream", *where))

    @property
    def numpy(self) -> np.random.Generator:
        return self._numpy

    @property
    def torch(self) -> torch.Generator:
        return self._torch

    def seed(self) -> int:
        return int(self._numpy.integers(1 << 32))


class MemoryLoader:
    """Shifts an image by up to one pixel for each view but 'plain', and keeps an account of what it handed out."""

    def __init__(
        self,
        task: MemoryTask,
        role: str,
        batch_size: int,
        views: tuple[str | ViewRecipe, ...],
        index: Tensor,
        shuffle: bool,
    ) -> None:
        self.task, self.role, self.batch_size, self.views = task, role, batch_size, views
        self.index, self.shuffle = index, shuffle

    def __len__(self) -> int:
        return -(-len(self.index) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        clock = self.task.clock
        number = clock.passes.get(self.role, 0)
        clock.passes[self.role] = number + 1
        generator = torch.Generator().manual_seed(seed_of(self.role, clock.epoch, number))
        order = torch.randperm(len(self.index), generator=generator) if self.shuffle else torch.arange(len(self.index))
        for rows in self.index[order].split(self.batch_size):
            views = tuple(self._view(view, self.task.images[rows], generator) for view in self.views)
            self.task.served.append((self.role, rows))
            yield Batch(index=rows, labels=self.task.labels[rows], views=views)

    def forever(self) -> Iterator[Batch]:
        if not len(self.index):
            raise ValueError(f"loader {self.role!r} has no sample")
        while True:
            yield from self

    @staticmethod
    def _view(view: str | ViewRecipe, images: Tensor, generator: torch.Generator) -> Tensor:
        if view == "plain" or not len(images):
            return images
        shifts = torch.randint(-1, 2, (len(images), 2), generator=generator).tolist()
        return torch.stack([image.roll(shift, (1, 2)) for image, shift in zip(images, shifts, strict=True)])


class MemoryEncoder:
    """Its features are directions of classes: of images with some noise, of texts by the name after 'a photo of a'."""

    name = "memory"
    embed_dim = 8
    context_dim = 4
    temperature = 0.05

    def __init__(self, features: Tensor, directions: dict[str, Tensor]) -> None:
        self.features, self.directions = features, directions
        self.asked: list[str] = []

    def training_features(self) -> Tensor:
        return self.features

    def text_features(self, texts: Sequence[str]) -> Tensor:
        self.asked += texts
        names = [max((name for name in self.directions if _says(text, name)), key=len) for text in texts]
        return torch.stack([self.directions[name] for name in names])

    def image_features(self, images: Tensor) -> Tensor:
        raise AssertionError(f"the method encodes no images of its own, not even {len(images)}")

    def token_embeddings(self, text: str) -> Tensor:
        raise AssertionError(f"the method learns no prompt from {text!r}")

    def prompt_features(self, context: Tensor, names: Sequence[str]) -> Tensor:
        raise AssertionError(f"the method learns no prompt of {len(context)} tokens for {names}")


def _says(text: str, name: str) -> bool:
    return text.removeprefix("a photo of a ").startswith(name)


class MemoryTask:
    def __init__(self, images: Tensor, labels: Tensor, info: TaskInfo, encoder: MemoryEncoder) -> None:
        self._encoder = encoder
        self.images, self.labels, self.info = images, labels, info
        self.num_train, self.num_classes = len(labels), info.num_classes
        self.device = torch.device("cpu")
        self.clock = Clock()
        self.served: list[tuple[str, Tensor]] = []
        self.loaders: list[tuple[str, dict[str, Any]]] = []
        self.selection: Selection | None = None

    def encoder(self, name: str) -> MemoryEncoder:
        assert name == "memory"
        return self._encoder

    def network(self, role: str, backbone: str) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of("init", role, backbone, self.clock.seed))
            return SmallNetwork(self.images.shape[1], self.num_classes)

    def loader(
        self,
        role: str,
        *,
        batch_size: int,
        views: Sequence[str | ViewRecipe] = ("weak",),
        index: Tensor | None = None,
        shuffle: bool = True,
        drop_last: bool = False,
    ) -> MemoryLoader:
        assert not drop_last
        self.loaders.append((role, {"batch_size": batch_size, "views": tuple(views), "shuffle": shuffle}))
        index = torch.arange(self.num_train) if index is None else index
        return MemoryLoader(self, role, batch_size, tuple(views), index, shuffle)

    def ask_validation(self, fraction: float = 0.1) -> ValidationSplit:
        raise AssertionError(f"the method asked for a validation set of {fraction}")


class MemoryRun:
    """Hands out epochs, keeps what is logged and reported, and can stop after an epoch with the state saved."""

    def __init__(
        self, task: MemoryTask, *, stop_after: int | None = None, resume: dict[str, Any] | None = None
    ) -> None:
        self.device = task.device
        self.clock = task.clock
        self.stop_after, self.resume = stop_after, resume
        self.tracked: dict[str, Any] = {}
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.reported: list[tuple[int, str, dict[str, Tensor]]] = []
        self.saved: dict[str, Any] = {}
        self.after_epoch: Callable[[int], object] = int

    def epochs(self, total: int) -> Iterator[int]:
        start = 0
        if self.resume is not None:
            start = self.resume["epoch"] + 1
            for name, state in self.resume["state"].items():
                if isinstance(self.tracked[name], dict):
                    self.tracked[name].update(_copy(state))
                else:
                    self.tracked[name].load_state_dict(state)
        for epoch in range(start, total):
            self.clock.move_to(epoch)
            yield epoch
            for state in self.tracked.values():
                if isinstance(state, nn.Module):
                    state.eval()
            self.after_epoch(epoch)
            if epoch == self.stop_after:
                states = {
                    name: state if isinstance(state, dict) else state.state_dict()
                    for name, state in self.tracked.items()
                }
                self.saved = {"epoch": epoch, "state": _copy(states)}
                return

    def track(self, **state: Any) -> None:
        self.tracked.update(state)

    def rng(self, name: str) -> MemoryStream:
        return self.clock.streams.setdefault(name, MemoryStream(name, self.clock))

    def log(self, **values: Tensor | float) -> None:
        self.logged.append((self.clock.epoch, dict(values)))

    def report(self, name: str = "", **verdicts: Tensor) -> None:
        self.reported.append((self.clock.epoch, name, verdicts))

    def stage(self, name: str, compute: object, **inputs: object) -> dict[str, Tensor]:
        raise AssertionError(f"the method has no stage before training: {name}, {compute}, {inputs}")

    def values(self, key: str) -> list[float]:
        """Return what was logged under a key, in order."""
        return [float(values[key]) for _, values in self.logged if key in values]


def _copy(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.clone()
    if isinstance(state, MutableMapping):
        return {key: _copy(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return [_copy(value) for value in state]
    assert state is None or isinstance(state, (bool, int, float, str))
    return state


def task_info(dataset: str = "toy", noise: str = "symmetric", rate: float | None = 0.4, **changes: Any) -> TaskInfo:
    facts: dict[str, Any] = {
        "suite": f"{dataset}-noise",
        "task": "0.40",
        "dataset": dataset,
        "num_classes": 100 if dataset == "cifar100" else 10,
        "num_train": 1437,
        "image_size": 8,
        "channels": 1,
        "class_names": (),
        "default_backbone": "small-cnn",
        "default_epochs": 40,
        "default_encoder": "memory",
        "_noise_type": noise,
        "_noise_rate": rate,
        "asked": set(),
    }
    return TaskInfo(**(facts | changes))


def toy_task(num_train: int = 90, num_classes: int = 3, noise: float = 0.3, spread: float = 0.3) -> MemoryTask:
    """Return images whose brightest quadrant is their class, a share of them with a wrong label."""
    generator = torch.Generator().manual_seed(5)
    true_labels = torch.arange(num_train) % num_classes
    images = 0.3 * torch.randn(num_train, 1, 8, 8, generator=generator)
    for image, label in zip(images, true_labels.tolist(), strict=True):
        top, left = divmod(label, 2)
        image[0, 4 * top : 4 * top + 4, 4 * left : 4 * left + 4] += 1.5
    labels = true_labels.clone()
    wrong = torch.randperm(num_train, generator=generator)[: int(noise * num_train)]
    labels[wrong] = (
        labels[wrong] + 1 + torch.randint(num_classes - 1, (len(wrong),), generator=generator)
    ) % num_classes
    names = tuple("abcdefghij"[:num_classes])
    info = task_info(num_classes=num_classes, num_train=num_train, class_names=names)
    directions = torch.eye(MemoryEncoder.embed_dim)[:num_classes]
    features = directions[true_labels] + spread * torch.randn(num_train, directions.shape[1], generator=generator)
    encoder = MemoryEncoder(nn.functional.normalize(features), dict(zip(names, directions, strict=True)))
    return MemoryTask(images, labels, info, encoder)


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
def make_run() -> Callable[..., MemoryRun]:
    return MemoryRun
