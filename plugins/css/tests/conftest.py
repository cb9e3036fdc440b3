"""A small harness for tests of the method alone: tasks and runs that keep the contracts, on tensors in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
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

    epoch: int = -1
    passes: dict[str, int] = field(default_factory=dict)
    streams: dict[str, MemoryStream] = field(default_factory=dict)

    def move_to(self, epoch: int) -> None:
        self.epoch = epoch
        self.passes.clear()
        torch.manual_seed(seed_of("global", epoch))
        self.streams.clear()


class MemoryStream:
    def __init__(self, name: str, epoch: int) -> None:
        self._numpy = np.random.default_rng(seed_of("stream", name, epoch))
        self._torch = torch.Generator().manual_seed(seed_of("torch stream", name, epoch))

    @property
    def numpy(self) -> np.random.Generator:
        return self._numpy

    @property
    def torch(self) -> torch.Generator:
        return self._torch

    def seed(self) -> int:
        return int(self._numpy.integers(1 << 32))


class MemoryLoader:
    """Shifts an image by up to one pixel for a view, adds noise for a strong one, and keeps account of the batches."""

    def __init__(
        self,
        task: MemoryTask,
        role: str,
        batch_size: int,
        views: tuple[str | ViewRecipe, ...],
        index: Tensor,
        shuffle: bool,
        drop_last: bool,
    ) -> None:
        self.task, self.role, self.batch_size, self.views = task, role, batch_size, views
        self.index, self.shuffle, self.drop_last = index, shuffle, drop_last

    def __len__(self) -> int:
        return len(self.index) // self.batch_size if self.drop_last else -(-len(self.index) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        clock = self.task.clock
        number = clock.passes.get(self.role, 0)
        clock.passes[self.role] = number + 1
        generator = torch.Generator().manual_seed(seed_of(self.role, clock.epoch, number))
        order = torch.randperm(len(self.index), generator=generator) if self.shuffle else torch.arange(len(self.index))
        for rows in self.index[order].split(self.batch_size)[: len(self)]:
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
        if view == "plain":
            return images
        shifts = torch.randint(-1, 2, (len(images), 2), generator=generator).tolist()
        shifted = torch.stack([image.roll(shift, (1, 2)) for image, shift in zip(images, shifts, strict=True)])
        return shifted if view == "weak" else shifted + 0.2 * torch.randn(shifted.shape, generator=generator)


class Towers(nn.Module):
    """Parameters of an image and a text tower."""

    def __init__(self, pixels: int, channels: int) -> None:
        super().__init__()
        self.image = nn.Linear(channels * pixels, 6, bias=False)
        self.tokens = nn.Embedding(64, 5)
        self.text = nn.Linear(5, 6, bias=False)
        self.requires_grad_(False)


class MemoryEncoder:
    """An encoder of words: a text's feature is a non-linear function of the mean of its words' embeddings."""

    name, embed_dim, context_dim, temperature, fingerprint = "words", 6, 5, 0.1, "0" * 64

    def __init__(self, task: MemoryTask) -> None:
        self.task = task
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of("towers"))
            self.towers = Towers(task.images[0, 0].numel(), task.images.shape[1])
        self.encoded: list[int] = []
        self.prompted = 0

    def training_features(self) -> Tensor:
        return F.normalize(self.towers.image(self.task.images.flatten(1)), dim=1)

    def image_features(self, images: Tensor) -> Tensor:
        self.encoded.append(len(images))
        with torch.no_grad():
            return F.normalize(self.towers.image(images.flatten(1)), dim=1)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        return F.normalize(torch.stack([self._encode(self.token_embeddings(text)) for text in texts]), dim=1)

    def token_embeddings(self, text: str) -> Tensor:
        words = torch.tensor([seed_of(word) % 64 for word in text.removesuffix(".").split()])
        embeddings: Tensor = self.towers.tokens(words)
        return embeddings

    def prompt_features(self, context: Tensor, names: Sequence[str]) -> Tensor:
        self.prompted += 1
        texts = [torch.cat([context, self.token_embeddings(name)]) for name in names]
        return F.normalize(torch.stack([self._encode(tokens) for tokens in texts]), dim=1)

    def _encode(self, tokens: Tensor) -> Tensor:
        features: Tensor = self.towers.text(torch.tanh(tokens.mean(0)))
        return features


class MemoryTask:
    def __init__(self, images: Tensor, labels: Tensor, info: TaskInfo) -> None:
        self.images, self.labels, self.info = images, labels, info
        self.num_train, self.num_classes = len(labels), info.num_classes
        self.device = torch.device("cpu")
        self.clock = Clock()
        self.served: list[tuple[str, Tensor]] = []
        self.loaders: list[tuple[str, dict[str, Any]]] = []
        self.selection: Selection | None = None
        self.encoders: dict[str, MemoryEncoder] = {}

    def encoder(self, name: str) -> MemoryEncoder:
        return self.encoders.setdefault(name, MemoryEncoder(self))

    def network(self, role: str, backbone: str) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of("init", role, backbone))
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
        self.loaders.append((role, {"batch_size": batch_size, "views": tuple(views), "shuffle": shuffle}))
        index = torch.arange(self.num_train) if index is None else index
        return MemoryLoader(self, role, batch_size, tuple(views), index, shuffle, drop_last)

    def ask_validation(self, fraction: float = 0.1) -> ValidationSplit:
        raise AssertionError(f"the method asked for a validation set of {fraction}")


class MemoryStage:
    def __init__(self, clock: Clock) -> None:
        self.device = torch.device("cpu")
        self.clock = clock

    def epochs(self, total: int) -> Iterator[int]:
        for epoch in range(total):
            self.clock.move_to(-2 - epoch)
            yield epoch

    def track(self, **state: Any) -> None:
        assert all(hasattr(each, "state_dict") for each in state.values())

    def rng(self, name: str) -> MemoryStream:
        return self.clock.streams.setdefault(name, MemoryStream(name, self.clock.epoch))

    def log(self, **values: Tensor | float) -> None:
        assert all(torch.as_tensor(value).isfinite() for value in values.values())


class MemoryRun:
    """Hands out epochs, keeps what is logged and reported, and can stop after an epoch with the state saved."""

    def __init__(
        self, task: MemoryTask, *, stop_after: int | None = None, resume: dict[str, Any] | None = None
    ) -> None:
        self.device = task.device
        self.clock = task.clock
        self.clock.move_to(-1)
        self.stop_after, self.resume = stop_after, resume
        self.tracked: dict[str, Any] = {}
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.reported: list[tuple[int, str, dict[str, Tensor]]] = []
        self.saved: dict[str, Any] = {}
        self.after_epoch: Callable[[int], object] = int
        self.stages: dict[str, dict[str, Any]] = {}

    def epochs(self, total: int) -> Iterator[int]:
        start = 0
        if self.resume is not None:
            start = self.resume["epoch"] + 1
            for name, state in self.resume["state"].items():
                self.tracked[name].load_state_dict(state)
        for epoch in range(start, total):
            self.clock.move_to(epoch)
            yield epoch
            for state in self.tracked.values():
                if isinstance(state, nn.Module):
                    state.eval()
            self.after_epoch(epoch)
            if epoch == self.stop_after:
                states = {name: state.state_dict() for name, state in self.tracked.items()}
                self.saved = {"epoch": epoch, "state": _copy(states)}
                return

    def track(self, **state: Any) -> None:
        self.tracked.update(state)

    def rng(self, name: str) -> MemoryStream:
        return self.clock.streams.setdefault(name, MemoryStream(name, self.clock.epoch))

    def log(self, **values: Tensor | float) -> None:
        self.logged.append((self.clock.epoch, dict(values)))

    def report(self, name: str = "", **verdicts: Tensor) -> None:
        self.reported.append((self.clock.epoch, name, verdicts))

    def stage(
        self,
        name: str,
        compute: Callable[[MemoryStage], dict[str, Tensor]],
        *,
        inputs: dict[str, Any],
        uses_labels: bool,
    ) -> dict[str, Tensor]:
        self.stages[name] = {"inputs": json.loads(json.dumps(inputs)), "uses_labels": uses_labels}
        result = compute(MemoryStage(self.clock))
        self.clock.move_to(-1)
        return {key: value.detach().clone() for key, value in result.items()}

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
        "default_encoder": "words",
        "_noise_type": noise,
        "_noise_rate": rate,
        "asked": set(),
    }
    return TaskInfo(**(facts | changes))


def toy_task(num_train: int = 90, num_classes: int = 3, noise: float = 0.3) -> MemoryTask:
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
    info = task_info(num_classes=num_classes, num_train=num_train, class_names=tuple("abcdefghij"[:num_classes]))
    return MemoryTask(images, labels, info)


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
