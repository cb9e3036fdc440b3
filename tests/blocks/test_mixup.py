from __future__ import annotations

import numpy as np
import pytest
import torch

from lnlbench.blocks.mixup import draw_mixup_weight, mixup


class FixedBeta(np.random.Generator):
    """A generator whose Beta draw is known."""

    def __init__(self, draw: float) -> None:
        super().__init__(np.random.PCG64(0))
        self.draw = draw
        self.asked: list[tuple[float, float]] = []

    def beta(self, a: float, b: float) -> float:  # type: ignore[override]
        self.asked.append((a, b))
        return self.draw


@pytest.mark.parametrize(("draw", "weight"), [(0.3, 0.7), (0.7, 0.7), (0.5, 0.5), (0.0, 1.0)])
def test_weight_is_the_larger_share(draw: float, weight: float) -> None:
    generator = FixedBeta(draw)
    assert draw_mixup_weight(4.0, generator) == pytest.approx(weight, abs=1e-15)
    assert generator.asked == [(4.0, 4.0)]


@pytest.mark.parametrize("alpha", [0.5, 4.0])
def test_weight_has_the_distribution_of_the_larger_share(generator: np.random.Generator, alpha: float) -> None:
    weights = np.array([draw_mixup_weight(alpha, generator) for _ in range(4000)])
    assert weights.min() >= 0.5
    assert weights.max() <= 1.0
    # Folding at 1/2 keeps the squared distance from 1/2: the variance of Beta(alpha, alpha).
    variance = 1 / (4 * (2 * alpha + 1))
    assert np.mean((weights - 0.5) ** 2) == pytest.approx(variance, rel=0.1)


def test_weight_repeats_with_the_generator() -> None:
    first, second = (draw_mixup_weight(4.0, np.random.default_rng(3)) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("alpha", [0.0, -2.0, float("nan")])
def test_refuses_alpha(generator: np.random.Generator, alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha must be above 0, got"):
        draw_mixup_weight(alpha, generator)


def test_worked_numbers() -> None:
    images = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    targets = torch.tensor([[1, 0], [0, 1], [0.5, 0.5], [0.2, 0.8]], dtype=torch.float64)
    mixed_images, mixed_targets = mixup(images, targets, 0.7, torch.tensor([2, 0, 3, 1]))
    np.testing.assert_allclose(mixed_images.numpy(), [1.6, 1.7, 3.3, 3.4])
    np.testing.assert_allclose(mixed_targets.numpy(), [[0.85, 0.15], [0.3, 0.7], [0.41, 0.59], [0.14, 0.86]])


@pytest.mark.parametrize("mixed", [0, 5, 12])
def test_formula_on_images(generator: np.random.Generator, mixed: int) -> None:
    images, targets = generator.normal(size=(12, 3, 4, 4)), generator.dirichlet(np.ones(5), size=12)
    partners = generator.permutation(12)[:mixed]
    mixed_images, mixed_targets = mixup(
        torch.from_numpy(images), torch.from_numpy(targets), 0.83, torch.from_numpy(partners)
    )
    assert mixed_images.shape == (mixed, 3, 4, 4)
    for row, partner in enumerate(partners):
        np.testing.assert_allclose(mixed_images[row].numpy(), 0.83 * images[row] + 0.17 * images[partner])
        np.testing.assert_allclose(mixed_targets[row].numpy(), 0.83 * targets[row] + 0.17 * targets[partner])
    np.testing.assert_allclose(mixed_targets.sum(1).numpy(), np.ones(mixed))


def test_keeps_the_memory_format() -> None:
    images = torch.randn(6, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    for partners in (torch.randperm(6), torch.randperm(6)[:4]):
        mixed_images, _ = mixup(images, torch.ones(6, 2), 0.6, partners)
        assert mixed_images.is_contiguous(memory_format=torch.channels_last)


def test_refuses_unequal_rows() -> None:
    with pytest.raises(ValueError, match="equally many rows, got 3 and 2"):
        mixup(torch.ones(3, 1), torch.ones(2, 2), 0.5, torch.tensor([0]))


def test_refuses_more_partners_than_rows() -> None:
    with pytest.raises(ValueError, match="got 3 partners for 2 rows"):
        mixup(torch.ones(2, 1), torch.ones(2, 2), 0.5, torch.tensor([0, 1, 0]))
