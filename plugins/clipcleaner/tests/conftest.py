"""The doubles of task and run that this package's tests use, and an encoder that knows the classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lnlbench.api import TaskInfo
from lnlbench.testing import MemoryRun, MemoryTask, task_info, toy_task


class ClassEncoder:
    """Its features are directions of classes: of images with some noise, of texts by the name after 'a photo of a'."""

    name, embed_dim, context_dim, temperature, fingerprint = "memory", 8, 4, 0.05, ""

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


def encoded_task(num_train: int = 90, num_classes: int = 3, noise: float = 0.3, spread: float = 0.3) -> MemoryTask:
    """Return a toy task whose images have features of ``spread`` around the direction of their true class."""
    task = toy_task(num_train, num_classes, noise)
    true_labels = toy_task(num_train, num_classes, 0.0).labels
    directions = torch.eye(ClassEncoder.embed_dim)[:num_classes]
    offsets = torch.randn(num_train, ClassEncoder.embed_dim, generator=torch.Generator().manual_seed(5))
    features = nn.functional.normalize(directions[true_labels] + spread * offsets)
    task.encoders["memory"] = ClassEncoder(features, dict(zip(task.info.class_names, directions, strict=True)))
    return task


def encoded_task_info(*facts: Any, **changes: Any) -> TaskInfo:
    return task_info(*facts, **{"default_encoder": "memory", **changes})


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def make_info() -> Callable[..., TaskInfo]:
    return encoded_task_info


@pytest.fixture
def make_task() -> Callable[..., MemoryTask]:
    return encoded_task


@pytest.fixture
def make_run() -> type[MemoryRun]:
    return MemoryRun
