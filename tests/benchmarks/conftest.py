"""Both sides of each comparison run in one session; the ratio is in the table that pytest-benchmark prints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lnlbench.contracts.task import TaskInfo
from lnlbench.contracts.views import RandomCrop, RandomFlip, ViewRecipe
from lnlbench.engine.device import resolve_precision
from lnlbench.engine.encoders import Encoders, TrainingImages
from lnlbench.engine.seeding import Clock
from lnlbench.engine.task import DeviceTask
from lnlbench.engine.views import ImageStore
from lnlbench.plugins import discover

NUM_IMAGES = 2048
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def one_core(device: torch.device) -> Iterator[None]:
    """Images per second *per core*: on the CPU every side has one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def images() -> NDArray[np.uint8]:
    """Random 32-pixel RGB images; speed does not depend on what they show."""
    return np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def labels() -> NDArray[np.int64]:
    return np.random.default_rng(1).integers(0, 10, NUM_IMAGES)


@pytest.fixture(scope="session")
def task(
    images: NDArray[np.uint8], labels: NDArray[np.int64], device: torch.device, tmp_path_factory: pytest.TempPathFactory
) -> DeviceTask:
    """The images as a task of CIFAR-10's shape, in the precision a CIFAR suite would resolve to here."""
    info = TaskInfo(
        suite="bench",
        task="0.50",
        dataset="cifar10",
        num_classes=10,
        num_train=NUM_IMAGES,
        image_size=32,
        channels=3,
        class_names=tuple("0123456789"),
        default_backbone="preact-resnet18",
        default_epochs=300,
        default_encoder="glyphs",
        _noise_type="symmetric",
        _noise_rate=0.5,
        asked=set(),
    )
    source = ImageStore(torch.from_numpy(images), MEAN, STD, 4, device)
    registry, precision = discover(), resolve_precision("auto", device.type)
    encoders = Encoders(
        registry.encoders,
        TrainingImages(source, "0" * 64, MEAN, STD),
        tmp_path_factory.mktemp("features"),
        device,
        precision,
        print,
        offline=True,
    )
    return DeviceTask(
        info,
        source,
        torch.from_numpy(labels),
        {"weak": ViewRecipe(ops=(RandomCrop(padding=4), RandomFlip()))},
        Clock(1),
        registry.backbones,
        device,
        precision,
        False,
        encoders,
    )


@pytest.fixture
def synchronised(device: torch.device) -> Callable[[Callable[[], Any]], Callable[[], None]]:
    """Wrap a step so that a GPU has really finished it when it returns."""

    def wrap(step: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        return run

    return wrap
