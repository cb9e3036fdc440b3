"""Images per second of strong views: a batch at a time, against torchvision's transforms in a DataLoader.

Both sides crop, mirror, apply one policy and normalise, in one process with one thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pytest_benchmark.fixture import BenchmarkFixture
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.transforms.autoaugment import _apply_op

from lnlbench.contracts.views import AutoAugment, Cutout, PixelOp, RandAugment, RandomCrop, RandomFlip, ViewRecipe
from lnlbench.engine.views import ImageStore

BATCH = 128
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
# The usual way takes a while, and its time is proportional to the number of images.
USUAL_IMAGES = 512


class FixMatch:
    """The strong view of Sohn et al. (NeurIPS 2020), image by image, out of torchvision's operations."""

    names = tuple(transforms.RandAugment()._augmentation_space(31, (32, 32)))

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)

    def __call__(self, image: Image.Image) -> Image.Image:
        for name in self._rng.choice(self.names, 2):
            level, sign = self._rng.integers(1, 10) / 10, self._rng.choice([-1, 1])
            if self._rng.random() < 0.5:
                image = _apply_op(
                    image, name, self._value(name, level, sign), transforms.InterpolationMode.NEAREST, None
                )
        row, column = self._rng.integers(0, 32, 2)
        ImageDraw.Draw(image).rectangle((column - 8, row - 8, column + 7, row + 7), (127, 127, 127))
        return image

    @staticmethod
    def _value(name: str, level: float, sign: int) -> float:
        if name in ("Brightness", "Color", "Contrast", "Sharpness"):
            return 0.9 * level - 0.95
        if name.startswith("Translate"):
            return sign * 0.3 * level * 32
        values = {"Rotate": sign * 30 * level, "Posterize": 4 + 4 * level, "Solarize": 255 * (1 - level)}
        return float(values.get(name, sign * 0.3 * level))


@dataclass(frozen=True)
class Case:
    """A policy, in our words and in torchvision's."""

    name: str
    ours: tuple[PixelOp, ...]
    usual: Callable[[Image.Image], Image.Image]


CASES = (
    Case("r: FixMatch's RandAugment with cutout", (RandAugment(), Cutout()), FixMatch()),
    Case(
        "s: torchvision's RandAugment",
        (RandAugment(probability=1.0, law="autoaugment", levels=(9, 9), top=30),),
        transforms.RandAugment(),
    ),
    Case(
        "t: AutoAugment for CIFAR-10",
        (AutoAugment(policy="cifar10"),),
        transforms.AutoAugment(transforms.AutoAugmentPolicy.CIFAR10, fill=[128, 128, 128]),
    ),
)
each_case = pytest.mark.parametrize("case", CASES, ids=[case.name[:1] for case in CASES])


@each_case
@pytest.mark.benchmark
def test_strong_views_ours(
    benchmark: BenchmarkFixture,
    case: Case,
    images: NDArray[np.uint8],
    device: torch.device,
    synchronised: Callable[[Callable[[], Any]], Callable[[], None]],
) -> None:
    benchmark.group = f"{case.name}, 2,048 images (ours) and 512 (usual: times 4)"
    store = ImageStore(torch.from_numpy(images), MEAN, STD, 4, device)
    recipe = ViewRecipe(ops=(RandomCrop(padding=4), RandomFlip(), *case.ours))
    order = torch.randperm(store.size, device=device)

    def one_pass() -> int:
        return sum(len(views) for (views,) in store.batches(order, BATCH, store.size // BATCH, (recipe,), (1,)))

    assert one_pass() == store.size
    benchmark.pedantic(synchronised(one_pass), rounds=10, warmup_rounds=2)


@each_case
@pytest.mark.benchmark
def test_strong_views_usual(benchmark: BenchmarkFixture, case: Case, images: NDArray[np.uint8]) -> None:
    benchmark.group = f"{case.name}, 2,048 images (ours) and 512 (usual: times 4)"
    transform = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            case.usual,
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )

    def batch(pixels: list[NDArray[np.uint8]]) -> torch.Tensor:
        return torch.stack([transform(Image.fromarray(each)) for each in pixels])

    loader = DataLoader(list(images[:USUAL_IMAGES]), BATCH, shuffle=True, collate_fn=batch)  # type: ignore[arg-type]

    def one_pass() -> int:
        return sum(len(views) for views in loader)

    assert one_pass() == USUAL_IMAGES
    benchmark.pedantic(one_pass, rounds=5, warmup_rounds=1)
