"""Images per second from JPEG files: streamed, or decoded beforehand, against ImageFolder with a DataLoader.

Both sides have the same files, the same transforms, batches of 32, and as many threads as the other has workers, one
per core. Photographs are made up of noise at all scales, so that they compress like real ones: 70 KB at 500 x 375 and
quality 90. What is timed is a pass over all of them, with the files in the system's memory.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pytest_benchmark.fixture import BenchmarkFixture
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from lnlbench.contracts.dataset import ImageFiles, Resize
from lnlbench.contracts.views import RandomCrop, RandomFlip, RandomResizedCrop, ViewRecipe
from lnlbench.engine.imagecache import build_cache
from lnlbench.engine.stream import FileSource, open_files
from lnlbench.store import LocalDataStore

BATCH = 32
WORKERS = len(os.sched_getaffinity(0))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# A few pictures, under many names: making them takes longer than reading them.
PICTURES, COPIES = 40, 8


@dataclass(frozen=True)
class Case:
    """What is done to images, in our words and in torchvision's."""

    name: str
    sizes: tuple[tuple[int, int], ...]
    resize: Resize
    side: int
    view: RandomCrop | RandomResizedCrop
    usual: tuple[Any, ...]


WEB = ((500, 375), (375, 500), (500, 333))
SHOP = ((256, 256), (300, 256), (256, 340), (280, 300))
CASES = (
    Case(
        "e: 224 of 256, photographs of 500 x 375",
        WEB,
        Resize(256, square=False),
        224,
        RandomCrop(padding=0),
        (transforms.Resize(256), transforms.RandomCrop(224)),
    ),
    Case(
        "f: 299 scaled from 320, photographs of 500 x 375",
        WEB,
        Resize(320, square=False),
        299,
        RandomResizedCrop(),
        (transforms.Resize(320), transforms.RandomResizedCrop(299)),
    ),
    Case(
        "g: 84 square, photographs of 500 x 375",
        WEB,
        Resize(84, square=True),
        84,
        RandomCrop(padding=8),
        (transforms.Resize((84, 84)), transforms.RandomCrop(84, padding=8)),
    ),
    Case(
        "h: 224 of 256, photographs of 256 to 340",
        SHOP,
        Resize(256, square=False),
        224,
        RandomCrop(padding=0),
        (transforms.Resize(256), transforms.RandomCrop(224)),
    ),
)
each_case = pytest.mark.parametrize("case", CASES, ids=[case.name[:1] for case in CASES])


def photograph(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Sum noise over nine octaves."""
    total = np.zeros((height, width, 3))
    for octave in range(9):
        noise = rng.normal(size=(2**octave + 1, 2**octave + 1, 3)).astype(np.float32)
        # The library enlarges one channel of floats at a time.
        layers = [Image.fromarray(noise[..., k]).resize((width, height), Image.Resampling.BICUBIC) for k in range(3)]
        total += 0.9**octave * np.stack([np.asarray(layer) for layer in layers], -1)
    total += 0.6 * total.mean(-1, keepdims=True)
    total = 128 + 50 * (total - total.mean()) / total.std()
    return Image.fromarray(np.clip(total, 0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def folder_of(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Callable[[tuple[tuple[int, int], ...]], Path]:
    """Write photographs of these sizes once; only a few where nothing is timed."""
    timed = request.config.getoption("benchmark_enable") or not request.config.getoption("benchmark_disable")
    pictures, copies = (PICTURES, COPIES) if timed else (3, 1)
    made: dict[tuple[tuple[int, int], ...], Path] = {}

    def folder(sizes: tuple[tuple[int, int], ...]) -> Path:
        if sizes not in made:
            made[sizes] = tmp_path_factory.mktemp("photographs")
            rng = np.random.default_rng(0)
            for number in range(pictures):
                picture = photograph(rng, *sizes[number % len(sizes)])
                for copy in range(copies):
                    target = made[sizes] / f"class{number % 2}" / f"{number:02d}-{copy}.jpg"
                    target.parent.mkdir(exist_ok=True)
                    picture.save(target, quality=90)
        return made[sizes]

    return folder


def files_of(folder: Path, resize: Resize) -> ImageFiles:
    paths = sorted(folder.glob("*/*.jpg"))
    digests = [np.frombuffer(hashlib.sha256(path.read_bytes()).digest(), np.uint8) for path in paths]
    names = tuple(path.relative_to(folder).as_posix() for path in paths)
    return ImageFiles(folder, names, np.stack(digests), resize, False)


def run_pass(source: FileSource, view: RandomCrop | RandomResizedCrop, seen: list[int]) -> Callable[[], None]:
    recipe = ViewRecipe(ops=(view, RandomFlip()))

    def run() -> None:
        order = torch.randperm(source.size)
        seen.clear()
        for (images,) in source.batches(order, BATCH, math.ceil(source.size / BATCH), (recipe,), (1,)):
            seen.append(len(images))

    return run


@each_case
@pytest.mark.benchmark
def test_streamed(benchmark: BenchmarkFixture, case: Case, folder_of: Callable[..., Path], tmp_path: Path) -> None:
    benchmark.group = case.name
    files = files_of(folder_of(case.sizes), case.resize)
    seen: list[int] = []
    source = open_files(files, case.side, MEAN, STD, torch.device("cpu"), tmp_path, WORKERS)
    benchmark.pedantic(run_pass(source, case.view, seen), rounds=5, warmup_rounds=1)
    assert sum(seen) == len(files)


@each_case
@pytest.mark.benchmark
def test_decoded_beforehand(
    benchmark: BenchmarkFixture, case: Case, folder_of: Callable[..., Path], tmp_path: Path
) -> None:
    benchmark.group = case.name
    files = files_of(folder_of(case.sizes), case.resize)
    seen: list[int] = []
    build_cache(files, tmp_path, LocalDataStore(tmp_path, offline=True), WORKERS)
    source = open_files(files, case.side, MEAN, STD, torch.device("cpu"), tmp_path, WORKERS)
    benchmark.pedantic(run_pass(source, case.view, seen), rounds=5, iterations=3, warmup_rounds=1)
    assert sum(seen) == len(files)


@pytest.fixture
def usual_loader(case: Case, folder_of: Callable[..., Path]) -> Iterator[DataLoader[Any]]:
    transform = transforms.Compose(
        [*case.usual, transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    )
    images = ImageFolder(str(folder_of(case.sizes)), transform)
    # Workers that stay, so that the time to start them is left out.
    loader: DataLoader[Any] = DataLoader(images, BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True)
    yield loader
    del loader


@each_case
@pytest.mark.benchmark
def test_usual(benchmark: BenchmarkFixture, case: Case, usual_loader: DataLoader[Any]) -> None:
    benchmark.group = case.name
    seen: list[int] = []

    def run() -> None:
        seen.clear()
        for images, _ in usual_loader:
            seen.append(len(images))

    benchmark.pedantic(run, rounds=5, warmup_rounds=1)
    assert sum(seen) == len(usual_loader.dataset)  # type: ignore[arg-type]
