"""What the harness adds to an epoch of CE on CIFAR-10 (50,000 images, batch 128, PreAct ResNet-18).

The bare side is one training step; an epoch has 391 of them. The harness side is everything between two epochs but the
evaluation itself: 391 logged losses, the hand-over of 10,000 predictions, scoring, the log line and a checkpoint. That
a checkpoint is due each epoch is the worst case: pacing makes it rarer the shorter an epoch is.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch.nn.functional import cross_entropy

from lnlbench.engine import checkpoint
from lnlbench.engine.live import LiveRun
from lnlbench.engine.scoring import Answers, PredictionLog, Truth
from lnlbench.engine.seeding import Clock
from lnlbench.engine.stages import StageCache
from lnlbench.engine.task import DeviceTask

STEPS = 391
GROUP = "d: harness per epoch (391 steps) against one bare step"


@pytest.mark.benchmark(group=GROUP)
def test_harness_per_epoch(
    benchmark: BenchmarkFixture, task: DeviceTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_PACE", 0.0)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 50_000)
    predictions = rng.integers(0, 10, 10_000)
    network = task.network("net", "preact-resnet18")
    optimiser = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9)
    cross_entropy(network(next(iter(task.loader("bench", batch_size=8))).images), torch.zeros(8).long()).backward()
    optimiser.step()
    live = LiveRun(
        tmp_path,
        Clock(1),
        task.device,
        "here",
        Truth.of(labels, labels, 10),
        PredictionLog({"": rng.integers(0, 10, 10_000)}, 10),
        lambda _modules: {"": Answers(predictions, None)},
        StageCache(tmp_path, {}, "", lambda _event: None),
        lambda _event: None,
    )
    live.track(network=network, optimiser=optimiser)
    epochs = live.epochs(1000)
    loss = torch.tensor(1.0, device=task.device)

    def one_epoch() -> None:
        next(epochs)
        for _ in range(STEPS):
            live.log(loss=loss)

    benchmark.pedantic(one_epoch, rounds=8, warmup_rounds=2)
    next(epochs)
    assert live.rows


@pytest.mark.benchmark(group=GROUP)
def test_bare_step(
    benchmark: BenchmarkFixture, task: DeviceTask, synchronised: Callable[[Callable[[], Any]], Callable[[], None]]
) -> None:
    network = task.network("net", "preact-resnet18")
    optimiser = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9)
    batch = next(iter(task.loader("bench", batch_size=128)))

    def step() -> None:
        loss = cross_entropy(network(batch.images), batch.labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    benchmark.pedantic(synchronised(step), rounds=5, warmup_rounds=1)
    benchmark.extra_info["steps per epoch"] = STEPS
    assert batch.images.shape[0] == 128
