"""Views, training steps and a whole DivideMix iteration: ours against the usual way, PreAct ResNet-18, batch 64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from lnlbench.engine.task import DeviceTask
from lnlbench.plugins import discover

BATCH = 64
Wrap = Callable[[Callable[[], Any]], Callable[[], None]]


@pytest.fixture(scope="module")
def usual() -> Any:
    """The module beside this file (test folders are no packages)."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("usual", Path(__file__).with_name("usual.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def optimiser_of(network: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)


def plain_network(device: torch.device) -> nn.Module:
    """The same architecture as it would be used outside: NCHW, float32."""
    factory = discover().backbones.find("preact-resnet18").load()
    network: nn.Module = factory("preact-resnet18", num_classes=10, channels=3, image_size=32)
    return network.to(device)


@pytest.mark.benchmark(group="a: one pass of weak views over 2,048 images")
def test_views_ours(benchmark: BenchmarkFixture, task: DeviceTask, synchronised: Wrap) -> None:
    loader = task.loader("bench", batch_size=BATCH)

    def one_pass() -> int:
        return sum(batch.images.shape[0] for batch in loader)

    assert one_pass() == task.num_train
    benchmark.pedantic(synchronised(one_pass), rounds=10, warmup_rounds=2)


@pytest.mark.benchmark(group="a: one pass of weak views over 2,048 images")
def test_views_usual(
    benchmark: BenchmarkFixture, images: NDArray[np.uint8], labels: NDArray[np.int64], usual: Any, task: DeviceTask
) -> None:
    views = usual.PilViews(images, labels, np.arange(len(labels)), 1, (0.49, 0.48, 0.45), (0.2, 0.2, 0.2))
    loader = DataLoader(views, batch_size=BATCH, shuffle=True)

    def one_pass() -> int:
        return sum(batch[0].to(task.device).shape[0] for batch, _, _ in loader)

    assert one_pass() == len(labels)
    benchmark.pedantic(one_pass, rounds=3, warmup_rounds=1)


@pytest.mark.benchmark(group="b: one training step")
def test_step_ours(benchmark: BenchmarkFixture, task: DeviceTask, synchronised: Wrap) -> None:
    network = task.network("net", "preact-resnet18")
    optimiser = optimiser_of(network)
    batch = next(iter(task.loader("bench", batch_size=BATCH)))

    def step() -> None:
        loss = cross_entropy(network(batch.images), batch.labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    benchmark.pedantic(synchronised(step), rounds=8, warmup_rounds=2)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.benchmark(group="b: one training step")
def test_step_usual(benchmark: BenchmarkFixture, task: DeviceTask, synchronised: Wrap) -> None:
    network = plain_network(task.device)
    optimiser = optimiser_of(network)
    images = torch.randn(BATCH, 3, 32, 32, device=task.device)
    given = torch.randint(0, 10, (BATCH,), device=task.device)

    def step() -> None:
        loss = cross_entropy(network(images), given)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    benchmark.pedantic(synchronised(step), rounds=8, warmup_rounds=2)
    assert images.is_contiguous()


@pytest.mark.benchmark(group="c: one DivideMix iteration, data included")
def test_dividemix_ours(benchmark: BenchmarkFixture, task: DeviceTask, synchronised: Wrap) -> None:
    cls = discover().methods.find("dividemix").load()
    method = cls(cls.preset(task.info))
    network, peer = task.network("net1", "preact-resnet18"), task.network("net2", "preact-resnet18")
    optimiser = optimiser_of(network)
    index = torch.arange(task.num_train, device=task.device)
    two = ("weak", "weak")
    labelled = task.loader("labelled", index=index[: task.num_train // 2], views=two, batch_size=BATCH).forever()
    unlabelled = task.loader("unlabelled", index=index[task.num_train // 2 :], views=two, batch_size=BATCH).forever()
    clean_probs = torch.rand(task.num_train, device=task.device)
    numpy_stream, torch_stream = np.random.default_rng(0), torch.Generator(task.device)
    network.train()
    peer.eval()

    def step() -> None:
        loss, _ = method.loss(
            network, peer, next(labelled), next(unlabelled), clean_probs, 25.0, numpy_stream, torch_stream
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    benchmark.pedantic(synchronised(step), rounds=5, warmup_rounds=1)
    assert all(torch.isfinite(parameter).all() for parameter in network.parameters())


@pytest.mark.slow  # `tox -e bench` has it
@pytest.mark.benchmark(group="c: one DivideMix iteration, data included")
def test_dividemix_usual(
    benchmark: BenchmarkFixture,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    task: DeviceTask,
    usual: Any,
    synchronised: Wrap,
) -> None:
    network, peer = plain_network(task.device), plain_network(task.device)
    optimiser = optimiser_of(network)
    halves = np.split(np.arange(len(labels)), 2)
    mean, std = (0.49, 0.48, 0.45), (0.2, 0.2, 0.2)
    labelled, unlabelled = (
        usual.forever(DataLoader(usual.PilViews(images, labels, half, 2, mean, std), batch_size=BATCH, shuffle=True))
        for half in halves
    )
    clean_probs = torch.rand(len(labels), device=task.device)
    network.train()
    peer.eval()

    def step() -> None:
        usual.dividemix_step(network, peer, optimiser, next(labelled), next(unlabelled), clean_probs, task.device)

    benchmark.pedantic(synchronised(step), rounds=5, warmup_rounds=1)
    assert all(torch.isfinite(parameter).all() for parameter in network.parameters())
