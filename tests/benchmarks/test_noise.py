"""Drawing part-dependent noise for images of CIFAR's size and number: ours against a loop over samples."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture
from scipy import special, stats

from lnlbench.builtin.noise.part_dependent import part_dependent

NUM_IMAGES = 50_000
LOOP_IMAGES = 2_500
"""The loop's time is proportional to the number of images, so it gets a twentieth of them."""

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


def made_up(num_images: int) -> tuple[Images, Labels]:
    draw = np.random.default_rng(0)
    return draw.integers(0, 256, (num_images, 32, 32, 3), dtype=np.uint8), np.arange(num_images, dtype=np.int64) % 10


def loop_over_samples(images: Images, labels: Labels, rate: float) -> Labels:
    """The algorithm as it is printed (Xia et al. 2020, Algorithm 2), plainly."""
    draw = np.random.RandomState(0)
    rates = stats.truncnorm.rvs(-rate / 0.1, (1 - rate) / 0.1, rate, 0.1, size=len(labels), random_state=draw)
    projections = draw.standard_normal((10, images[0].size, 10))
    given_labels = labels.copy()
    for n, (image, label) in enumerate(zip(images, labels, strict=True)):
        scores = image.transpose(2, 0, 1).ravel().astype(np.float64) @ projections[label]
        scores[label] = -np.inf
        row = rates[n] * special.softmax(scores)
        row[label] = 1 - rates[n]
        given_labels[n] = draw.choice(10, p=row)
    return given_labels


@pytest.mark.benchmark(group="n: part-dependent noise, 50,000 images (ours) and 2,500 (the loop: times 20)")
def test_part_dependent_ours(benchmark: BenchmarkFixture) -> None:
    images, labels = made_up(NUM_IMAGES)
    generated = benchmark.pedantic(
        part_dependent, (labels, 0.4), {"num_classes": 10, "seed": 1, "images": images}, rounds=5, warmup_rounds=1
    )
    assert np.mean(generated.labels != labels) == pytest.approx(0.4, abs=0.01)


@pytest.mark.benchmark(group="n: part-dependent noise, 50,000 images (ours) and 2,500 (the loop: times 20)")
def test_part_dependent_loop(benchmark: BenchmarkFixture) -> None:
    images, labels = made_up(LOOP_IMAGES)
    given_labels = benchmark.pedantic(loop_over_samples, (images, labels, 0.4), rounds=5, warmup_rounds=1)
    assert np.mean(given_labels != labels) == pytest.approx(0.4, abs=0.05)
