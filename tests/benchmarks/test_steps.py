"""A training step of each method against its passes alone: forward, backward and optimiser, with nothing in between.

Both sides take turns, epoch by epoch, in the main phase: same backbone, batch shapes, modes and optimiser. Loading is
on neither side. Steps that follow a pass over the samples to judge them are left out.
"""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from lnlbench.contracts.task import Batch, Loader
from lnlbench.engine.seeding import Clock
from lnlbench.engine.task import DeviceTask
from lnlbench.engine.tracking import Tracker
from lnlbench.plugins import discover

WARMUP, MAIN = 1, 3


@dataclass(frozen=True)
class Size:
    """How much is computed."""

    backbone: str
    num_train: int
    batch_size: int


# Where nothing is timed, everything is done once and small.
TIMED, UNTIMED = Size("cnn7", 160, 32), Size("small-cnn", 40, 8)


@dataclass(frozen=True)
class Pass:
    """One call of a network."""

    network: int
    images: int
    gradient: bool
    training: bool


@dataclass
class Record:
    """What a method did since its last step, and how long its steps took."""

    device: torch.device
    networks: list[nn.Module] = field(default_factory=list)
    optimiser: torch.optim.Optimizer | None = None
    passes: list[Pass] = field(default_factory=list)
    steps: list[tuple[tuple[Pass, ...], float]] = field(default_factory=list)
    _loading: float = 0.0
    _began: float | None = None

    def now(self) -> float:
        """Processor time, in which other programs do not count; on a GPU the clock."""
        if self.device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def restart(self) -> None:
        """Begin an epoch: there was no step yet."""
        self.passes, self.steps, self._began = [], [], None

    def watch(self, network: nn.Module) -> nn.Module:
        """Note every pass of a network."""
        number = len(self.networks)
        self.networks.append(network)

        def note(module: nn.Module, arguments: tuple[Tensor, ...], _output: Tensor) -> None:
            self.passes.append(Pass(number, len(arguments[0]), torch.is_grad_enabled(), module.training))

        next(module for module in network.modules() if isinstance(module, nn.Conv2d)).register_forward_hook(note)
        return network

    def loading(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Keep the time apart that loading takes."""
        while True:
            began = self.now()
            batch = next(batches, None)
            self._loading += self.now() - began
            if batch is None:
                return
            yield batch

    def stepped(self, optimiser: torch.optim.Optimizer, _arguments: Any, _options: Any) -> None:
        """Close the account of a step. One without passes is the other side's."""
        if not self.passes:
            return
        now = self.now()
        if self._began is not None:
            self.steps.append((tuple(self.passes), now - self._began - self._loading))
        self.optimiser, self.passes, self._began, self._loading = optimiser, [], now, 0.0


class TimedLoader:
    """A loader whose work is on no side's account."""

    def __init__(self, loader: Loader, record: Record) -> None:
        self._loader, self._record = loader, record

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        return self._record.loading(iter(self._loader))

    def forever(self) -> Iterator[Batch]:
        return self._record.loading(self._loader.forever())


class TimedRun(Tracker):
    """A run without evaluation, which is called back after each epoch of the main phase."""

    def __init__(self, device: torch.device, record: Record, after_epoch: Callable[[], None]) -> None:
        super().__init__(Clock(1), device)
        self._record, self._after_epoch = record, after_epoch

    def epochs(self, total: int) -> Iterator[int]:
        """Hand out epochs."""
        for epoch in range(total):
            self._clock.move_to(f"epoch {epoch}")
            self._record.restart()
            yield epoch
            self._steps.finish(epoch)
            if epoch >= WARMUP:
                self._after_epoch()

    def report(self, name: str = "", **verdicts: Any) -> None:
        """Listen to nothing."""


def bare(record: Record, task: DeviceTask, backbone: str) -> Callable[[tuple[Pass, ...]], float]:
    """Return what repeats the passes of a step on networks of its own, and returns the seconds."""
    networks: dict[int, nn.Module] = {}
    optimisers: dict[int, torch.optim.Optimizer] = {}

    def twin(number: int) -> nn.Module:
        if number not in networks:
            networks[number] = task.network(f"bare{number}", backbone)
        return networks[number]

    def repeat(passes: tuple[Pass, ...]) -> float:
        assert record.optimiser is not None
        (trained,) = {each.network for each in passes if each.gradient}
        if trained not in optimisers:
            kind: Any = type(record.optimiser)
            optimisers[trained] = kind(twin(trained).parameters(), **record.optimiser.defaults)
        size, channels = task.info.image_size, task.info.channels
        images = [
            torch.randn(each.images, channels, size, size, device=task.device).to(memory_format=torch.channels_last)
            for each in passes
        ]
        for each in passes:
            twin(each.network)
        began = record.now()
        loss: Tensor = torch.zeros((), device=task.device)
        for each, batch in zip(passes, images, strict=True):
            with torch.set_grad_enabled(each.gradient):
                logits = networks[each.network].train(each.training)(batch)
            if each.gradient:
                loss = loss + logits.square().mean()
        optimisers[trained].zero_grad()
        loss.backward()
        optimisers[trained].step()
        return record.now() - began

    return repeat


@pytest.mark.parametrize("name", ["ce", "dividemix", "josrc", "ccl"])
@pytest.mark.benchmark(group="u: a training step of the main phase; ratio to its passes alone in extra_info")
def test_step_of(name: str, benchmark: BenchmarkFixture, task: DeviceTask, request: pytest.FixtureRequest) -> None:
    timed = request.config.getoption("benchmark_enable") or not request.config.getoption("benchmark_disable")
    size = TIMED if timed else UNTIMED
    record = Record(task.device)
    seconds: dict[str, list[float]] = {"step": [], "bare": []}

    class WatchedTask(DeviceTask):
        def network(self, role: str, backbone: str) -> nn.Module:
            return record.watch(super().network(role, backbone))

        def loader(self, role: str, **options: Any) -> Loader:
            return TimedLoader(super().loader(role, **options), record)

    watched = copy.copy(task)
    watched.__class__ = WatchedTask
    watched.num_train, watched.labels = size.num_train, task.labels[: size.num_train]
    repeat = bare(record, task, size.backbone)

    def compare() -> None:
        (usual, _), *_ = Counter(passes for passes, _ in record.steps).most_common(1)
        for passes, took in list(record.steps):
            if passes == usual:
                seconds["step"].append(took)
                seconds["bare"].append(repeat(passes))

    cls = discover().methods.find(name).load()
    settings = {**cls.preset(task.info).model_dump(), "epochs": WARMUP + MAIN}
    settings |= {"backbone": size.backbone, "batch_size": size.batch_size}
    if "warmup_epochs" in settings:
        settings["warmup_epochs"] = WARMUP
    method = cls(cls.Config.model_validate(settings))
    hook = register_optimizer_step_post_hook(record.stepped)
    try:
        benchmark.pedantic(method.fit, (watched, TimedRun(task.device, record, compare)), rounds=1)
    finally:
        hook.remove()
    step, alone = median(seconds["step"]), median(seconds["bare"])
    benchmark.extra_info |= {"ms a step": 1000 * step, "ms alone": 1000 * alone, "ratio": step / alone}
    assert len(seconds["step"]) >= MAIN
    assert alone > 0
