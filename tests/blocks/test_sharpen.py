from __future__ import annotations

import numpy as np
import pytest
import torch

from lnlbench.blocks.sharpen import sharpen


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [
        (0.5, [0.657895, 0.236842, 0.105263]),
        (0.25, [0.865651, 0.112188, 0.022161]),
        (1.0, [0.5, 0.3, 0.2]),
    ],
)
def test_worked_numbers(temperature: float, expected: list[float]) -> None:
    sharpened = sharpen(torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64), temperature)
    np.testing.assert_allclose(sharpened.numpy(), [expected], atol=5e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [0.3, 0.5, 1.0, 2.0])
def test_formula(generator: np.random.Generator, dtype: torch.dtype, temperature: float) -> None:
    probs = generator.dirichlet(np.ones(7), size=20)
    expected = np.array([[p ** (1 / temperature) for p in row] for row in probs])
    expected = np.array([[p / sum(row) for p in row] for row in expected])
    sharpened = sharpen(torch.tensor(probs, dtype=dtype), temperature)
    assert sharpened.dtype == dtype
    np.testing.assert_allclose(sharpened.numpy(), expected, rtol=2e-5 if dtype == torch.float32 else 1e-12)


def test_worked_refinement() -> None:
    given = torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64)
    probs = torch.tensor([[[0.6, 0.3, 0.1]], [[0.5, 0.25, 0.25]]], dtype=torch.float64).mean(0)
    for weight, expected in ((0.8, [0.016256, 0.982098, 0.001646]), (0.3, [0.365277, 0.597742, 0.036981])):
        refined = sharpen(weight * given + (1 - weight) * probs, 0.5)
        np.testing.assert_allclose(refined.numpy(), [expected], atol=1e-6)


def test_small_temperature_does_not_underflow() -> None:
    sharpened = sharpen(torch.full((1, 100), 0.01), 0.01)
    np.testing.assert_allclose(sharpened.numpy(), np.full((1, 100), 0.01), rtol=1e-5)


def test_zeros_stay_zero_and_one_hot_stays_one_hot() -> None:
    assert sharpen(torch.tensor([[0.0, 1.0, 0.0]]), 0.5).tolist() == [[0.0, 1.0, 0.0]]


def test_gradient_agrees_with_differences() -> None:
    probs = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p: sharpen(p, 0.5), (probs,))


def test_no_rows() -> None:
    assert sharpen(torch.zeros(0, 4), 0.5).shape == (0, 4)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_refuses_temperature(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must be above 0, got"):
        sharpen(torch.ones(1, 2), temperature)
